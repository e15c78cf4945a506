"""Stream of samples -> detections.  Time is counted in samples; no clock and no device is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speech.audio import Block, as_mono
from speech.decoding import Decision, WordDecoder
from speech.errors import ConfigError
from speech.recognizer import Recognizer


@dataclass(frozen=True)
class Detection:
    """A command that was heard."""

    word: str
    start_s: float
    """Where its sound begins, in seconds since the stream began."""
    end_s: float
    """Where its sound ends."""
    confidence: float
    """Mean posterior of the windows that decided, 0..1."""
    at_s: float
    """How much audio had been heard when it was decided; `at_s - end_s` is the latency."""


@dataclass(frozen=True)
class ListenerConfig:
    """How the stream is cut and when a word counts."""

    hop_s: float = 0.08
    """Distance between the ends of two windows."""
    n_windows: int = 3
    """Successive windows whose posteriors are averaged."""
    settle_s: float = 0.06
    """Quiet behind a word after which it counts as finished: "on" is not reported while "one" may still come."""
    hold_s: float = 0.32
    """Time for which a word must stay the best when no quiet follows it, as in noise or running speech."""
    gap_s: float = 0.03
    """A sound that begins less than this behind the last word is the rest of it."""
    refractory_s: float = 0.4
    """Time in which the same word is not reported again."""
    tail_s: float = 0.4
    """Silence appended at the end of a stream, so that a word at the very end is still decided."""

    def __post_init__(self) -> None:
        for field in ("hop_s", "n_windows"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"{field}={getattr(self, field)} must be positive")
        for field in ("settle_s", "hold_s", "gap_s", "refractory_s", "tail_s"):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field}={getattr(self, field)} must not be negative")


class Listener:
    """Slides the recogniser's window over a stream and reports each command once.

    The window is looked at whenever another `hop_s` of audio has come, whatever the size of the blocks.
    A word is reported when the posteriors of a few windows agree on it and its sound has ended, or when they
    have agreed for a while.  What lies before its end is silenced in later windows, so that no word is heard
    twice and the same word can follow at once.

    Args:
        recognizer: a loaded bundle.
        words: report only these; default: all words of the bundle.
        threshold: mean posterior from which a word counts, 0..1, for all words or for each; default: the bundle's.
        config: timing.
        near_miss: called with a word that came within `decoding.NEAR` of its threshold, a while after it did not
            reach it.
    Raises:
        ConfigError: a word that the bundle lacks, a threshold out of range.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        words: Sequence[str] | None = None,
        threshold: float | Mapping[str, float] | None = None,
        config: ListenerConfig = ListenerConfig(),
        near_miss: Callable[[Detection], None] | None = None,
    ) -> None:
        info = recognizer.info
        words = info.words if words is None else tuple(words)
        strange = [word for word in words if word not in info.words]
        if strange or not words:
            unknown = ", ".join(map(repr, strange)) or "an empty list"
            raise ConfigError(f"the model does not know {unknown}; it knows {', '.join(info.words)}")
        self.thresholds = dict.fromkeys(words, info.threshold)
        if isinstance(threshold, Mapping):
            self.thresholds |= {word: value for word, value in threshold.items() if word in words}
        elif threshold is not None:
            self.thresholds = dict.fromkeys(words, threshold)
        for word, value in self.thresholds.items():
            if not 0 < value <= 1:
                raise ConfigError(f"threshold={value} of {word!r} must lie in 0..1")
        self.recognizer, self.config, self._near_miss = recognizer, config, near_miss
        self._rate = info.sample_rate_hz
        self._hop = round(config.hop_s * self._rate)
        self._decoder = WordDecoder(info.labels, self.thresholds, config.n_windows)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream at time 0."""
        self._buffer = np.zeros(self.recognizer.info.window, np.float32)  # the last window, silence at first
        self._fresh: list[Block] = []  # samples behind the buffer, less than a hop in all
        self._n_fresh = 0
        self._heard = 0  # samples up to the end of the buffer
        self._fed = 0  # samples that came from outside
        self._consumed = 0  # samples up to the end of the last detection
        self._last = ("", 0)  # last word and when it was decided, in samples
        self._held = ("", 0)  # the word that is best now and for how many samples it has been
        self._near: Detection | None = None  # the best word since the last decision that was not sure
        self._decoder.reset()

    @property
    def heard_s(self) -> float:
        """Seconds of audio fed so far."""
        return self._fed / self._rate

    def feed(self, block: Block) -> list[Detection]:
        """Take the next samples.

        Args:
            block: (time,) or (time, channels), any length, at the bundle's rate; float in -1..1 or 16/32-bit integers.
        Returns:
            what was decided in it.
        Raises:
            AudioError: NaN, infinity or another type.
        """
        block = np.asarray(block)
        if not block.size:
            return []
        block = as_mono(block)
        self._fed += len(block)
        return self._advance(block)

    def flush(self) -> list[Detection]:
        """The stream has ended: what its last words decide when silence follows.  Then begin anew."""
        detections = self._advance(np.zeros(round(self.config.tail_s * self._rate) + self._hop, np.float32))
        self.reset()
        return detections

    def listen(self, blocks: Iterable[Block]) -> Iterator[Detection]:
        """Detections of a whole stream, each as soon as it is decided."""
        for block in blocks:
            yield from self.feed(block)
        yield from self.flush()

    def _advance(self, block: Block) -> list[Detection]:
        detections = []
        while self._n_fresh + len(block) >= self._hop:
            taken = self._hop - self._n_fresh
            hop = np.concatenate([*self._fresh, block[:taken]])
            self._fresh, self._n_fresh, block = [], 0, block[taken:]
            self._buffer = np.concatenate([self._buffer[self._hop :], hop])
            self._heard += self._hop
            detection = self._look()
            if detection:
                detections.append(detection)
        if len(block):
            self._fresh.append(block)
            self._n_fresh += len(block)
        return detections

    def _look(self) -> Detection | None:
        window = self._buffer.copy()
        begin = self._heard - len(window)
        window[: max(0, self._consumed - begin)] = 0
        decision = self._decoder.push(self.recognizer.scores(window[None])[0])
        held, self._held = self._held, ("", 0)
        self._tell_near_miss()
        if not decision or self._is_repeated(decision.word):
            return None
        start, end = word_bounds(window, self._rate)
        if self._is_rest(begin + start):
            return None
        if not decision.is_sure:
            self._nearly(decision, begin + start, begin + end)
            return None
        lasting = held[1] + self._hop if held[0] == decision.word else 0
        finished = len(window) - end >= self.config.settle_s * self._rate
        if finished or lasting >= self.config.hold_s * self._rate:
            return self._report(decision, begin + start, min(begin + end, self._fed))
        self._held = (decision.word, lasting)
        return None

    def _is_repeated(self, word: str) -> bool:
        last, when = self._last
        return word == last and self._heard - when < self.config.refractory_s * self._rate

    def _is_rest(self, start: int) -> bool:
        return bool(self._consumed) and start - self._consumed < self.config.gap_s * self._rate

    def _nearly(self, decision: Decision, start: int, end: int) -> None:
        if self._near is None or decision.confidence > self._near.confidence:
            self._near = self._detection(decision, start, end)

    def _tell_near_miss(self) -> None:
        """A word that was not sure becomes a near miss when nothing has been decided for a window behind it."""
        if self._near and self._heard / self._rate - self._near.at_s > self.recognizer.info.window_s:
            near, self._near = self._near, None
            if self._near_miss:
                self._near_miss(near)

    def _report(self, decision: Decision, start: int, end: int) -> Detection:
        self._consumed, self._last, self._near = end, (decision.word, self._heard), None
        self._decoder.reset()
        return self._detection(decision, start, end)

    def _detection(self, decision: Decision, start: int, end: int) -> Detection:
        start_s, end_s = max(0, start) / self._rate, end / self._rate
        return Detection(decision.word, start_s, end_s, decision.confidence, min(self._heard, self._fed) / self._rate)


def word_bounds(window: Block, sample_rate_hz: int) -> tuple[int, int]:
    """First and last sample of the sound around the loudest place of a window (time,).

    The sound goes on while its level stays above the geometric mean of floor and peak (at least a twentieth of
    the peak), pauses under 120 ms included: the closure of a plosive belongs to the word.
    """
    step = sample_rate_hz // 100
    power = np.square(window[: len(window) // step * step].reshape(-1, step)).mean(1)
    level: NDArray[np.float32] = np.sqrt(np.convolve(power, np.ones(3) / 3, "same"))
    audible = level[level > 0]
    if not len(audible):
        return 0, len(window)
    peak = int(level.argmax())
    limit = max(np.sqrt(np.quantile(audible, 0.1) * level[peak]) * 0.7, level[peak] / 20)
    loud = np.flatnonzero(level > limit)
    breaks = np.flatnonzero(np.diff(loud) > 12)  # pauses, in 10-ms steps
    islands = np.split(loud, breaks + 1)
    island = next(i for i in islands if i[0] <= peak <= i[-1])
    return int(island[0]) * step, min(len(window), int(island[-1] + 1) * step)
