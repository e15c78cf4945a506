"""Windows of a stream -> detections: one word at a time, or sequences of words."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speech.audio import Block
from speech.ctc import beam_search
from speech.decoding import NEAR, Decision, WordDecoder
from speech.errors import ConfigError
from speech.grammar import Grammar
from speech.recognizer import SILENCE, Recognizer, log_of

STEADY = 8.0
"""Times the power of the quietest tenth of the audio, under which a sound may be steady noise."""


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
    settle_s: float = 0.2
    """Quiet behind a word after which it counts as finished: "on" is not reported while "one" may still come."""
    hold_s: float = 0.4
    """Time for which a word must stay the best when no quiet follows it, as in noise or running speech."""
    alone_db: float = 9.0
    """How far a word must stand out of what is heard right before and behind it, so that words within running speech
    are passed over; 0: it need not."""
    alone_s: float = 1.0
    """How far back before the word that is asked for, at most 10; behind it `settle_s`.  A fifth of it may be loud."""
    talk_s: float = 0.8
    """Speech, commands aside, that may have been heard in the last `talk_memory_s` before a word, less than `alone_db`
    below it.  With more of it somebody is talking, and the word is passed over."""
    talk_memory_s: float = 6.0
    """How far back before a word other speech counts against it, at most 60; 0: it never does.  A television talks on,
    with pauses around single words, but hardly ever this long."""
    gap_s: float = 0.03
    """A sound that begins less than this behind the last word is the rest of it."""
    refractory_s: float = 0.4
    """Time in which the same word is not reported again."""
    tail_s: float = 0.4
    """Silence appended at the end of a stream, so that a word at the very end is still decided."""
    sequence_hop_s: float = 0.12
    """The same as `hop_s` for a bundle with a CTC head, whose window is longer."""
    sequence_settle_s: float = 0.5
    """Audio that must follow a token of a CTC head before it is believed."""
    gate_db: float = 3.0
    """How far a sound must stand out of the quietest tenth of the last seconds to be looked at."""
    gate_floor_dbfs: float = -75.0
    """RMS level under which nothing is looked at."""
    gate_hold_s: float = 0.8
    """Time for which the stream is still looked at behind the last sound."""
    gate_memory_s: float = 2.0
    """How far back the quiet is sought."""

    def __post_init__(self) -> None:
        for field in ("hop_s", "n_windows", "sequence_hop_s", "gate_memory_s"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"{field}={getattr(self, field)} must be positive")
        for field in (
            "settle_s", "hold_s", "alone_db", "alone_s", "talk_s", "talk_memory_s", "gap_s", "refractory_s", "tail_s",
            "sequence_settle_s", "gate_db", "gate_hold_s",
        ):  # fmt: skip
            if not getattr(self, field) >= 0:
                raise ConfigError(f"{field}={getattr(self, field)} must not be negative")
        for field, most in (("alone_s", 10), ("talk_memory_s", 60)):
            if getattr(self, field) > most:
                raise ConfigError(f"{field}={getattr(self, field)} must be at most {most}")


@dataclass(frozen=True)
class View:
    """The end of the stream, as the listener shows it."""

    window: Block
    """(time,) the last samples."""
    heard: int
    """Samples of the stream up to the end of the window."""
    fed: int
    """How many of these came from outside; behind them the stream has ended."""
    past: Block
    """(time,) the samples before the window."""

    @property
    def begin(self) -> int:
        """Place of the first sample of the window."""
        return self.heard - len(self.window)

    def detection(self, word: str, start: int, end: int, confidence: float, rate_hz: int) -> Detection:
        """A detection decided now; `start` and `end` in samples."""
        end = min(end, self.fed)
        at_s = min(self.heard, self.fed) / rate_hz
        return Detection(word, max(0, start) / rate_hz, end / rate_hz, confidence, at_s)


class Spotter(Protocol):
    """What the listener asks about each view of the stream."""

    def look(self, view: View) -> list[Detection]: ...

    def reset(self) -> None: ...


class WordSpotter:
    """Words in the windows of a classification head, each reported once.

    A word is reported when the posteriors of a few windows agree on it and its sound has ended, or when they have
    agreed for a while.  What lies before its end is silenced in later windows, so that no word is heard twice and
    the same word can follow at once.

    Args:
        thresholds: the words to report and the mean posterior from which each counts, 0..1.
        near_miss: takes a word that came near its threshold, a window after it did not reach it.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        near_miss: Callable[[Detection], None],
    ) -> None:
        self._recognizer, self._config, self._near_miss = recognizer, config, near_miss
        self._rate, self._hop = recognizer.info.sample_rate_hz, round(config.hop_s * recognizer.info.sample_rate_hz)
        labels = recognizer.info.labels
        self._decoder = WordDecoder(labels, thresholds, config.n_windows)
        self._silence = labels.index(SILENCE) if SILENCE in labels else None
        self.reset()

    def reset(self) -> None:
        """A new stream begins at time 0."""
        self._consumed = 0  # samples up to the end of the last detection
        self._last = ("", 0)  # last word and when it was decided, in samples
        self._held = ("", 0)  # the word that is best now and for how many samples it has been
        self._near: Detection | None = None  # the best word since the last decision that was not sure
        self._talk: deque[tuple[int, float]] = deque()  # hops that sounded like speech: their ends and powers
        self._decoder.reset()

    def look(self, view: View) -> list[Detection]:
        """What the next window decides: one word at most."""
        window, begin = view.window.copy(), view.begin
        window[: max(0, self._consumed - begin)] = 0
        posteriors = self._recognizer.scores(window[None])[0]
        self._remember_talk(posteriors, view)
        decision = self._decoder.push(posteriors)
        held, self._held = self._held, ("", 0)
        self._tell_near_miss(view)
        if not decision or self._is_repeated(decision.word, view):
            return []
        start, end = word_bounds(window, self._rate)
        if self._is_rest(begin + start):
            return []
        if not decision.is_sure:
            self._nearly(decision, begin + start, begin + end, view)
            return []
        lasting = held[1] + self._hop if held[0] == decision.word else 0
        finished = len(window) - end >= self._config.settle_s * self._rate
        if (finished or lasting >= self._config.hold_s * self._rate) and self._is_alone(view, start, end):
            return [self._report(decision, begin + start, min(begin + end, view.fed), view)]
        self._held = (decision.word, lasting)
        return []

    def _is_repeated(self, word: str, view: View) -> bool:
        last, when = self._last
        return word == last and view.heard - when < self._config.refractory_s * self._rate

    def _is_rest(self, start: int) -> bool:
        return bool(self._consumed) and start - self._consumed < self._config.gap_s * self._rate

    def _is_alone(self, view: View, start: int, end: int) -> bool:
        """Whether the word at these places of the window is no part of running speech; reported words don't count."""
        config, n_past = self._config, len(view.past)
        if not config.alone_db:
            return True
        if self._talk_before(view, start, end) > config.talk_s:
            self._forget_talk(view.begin + start)  # a command that is said over and over must not keep itself out
            return False
        known = max(0, self._consumed - view.begin + n_past)  # up to there is what was reported, or was never heard
        audio = np.concatenate([view.past, view.window])[known:]
        bounds = (max(0, n_past + start - known), n_past + end - known)
        reach = (round(config.alone_s * self._rate), round(config.settle_s * self._rate))
        return stands_out(audio, bounds, self._rate, config.alone_db, reach)

    def _remember_talk(self, posteriors: NDArray[np.float32], view: View) -> None:
        """Note the newest hop where the window sounds like speech."""
        if self._silence is None or posteriors[self._silence] < 0.5:
            self._talk.append((view.heard, float(np.square(view.window[-self._hop :]).mean())))
        while self._talk and view.heard - self._talk[0][0] > (self._config.talk_memory_s + 2) * self._rate:
            self._talk.popleft()

    def _talk_before(self, view: View, start: int, end: int) -> float:
        """Seconds of speech in the memory before a word at these places of the window.

        What is far less loud than the word, or as loud as steady noise, does not count.
        """
        heard = _smooth_powers(np.concatenate([view.past, view.window]), self._rate)
        word = (place * 100 // self._rate for place in (start, end))
        loudness = _loudness(_smooth_powers(view.window, self._rate), *word)
        least = _least_loud(loudness, heard, self._config.alone_db)
        start += view.begin
        since = start - self._config.talk_memory_s * self._rate
        return sum(since < at <= start and power > least for at, power in self._talk) * self._config.hop_s

    def _forget_talk(self, start: int) -> None:
        """What was heard from `start` on is a word, not talk."""
        while self._talk and self._talk[-1][0] > start:
            self._talk.pop()

    def _nearly(self, decision: Decision, start: int, end: int, view: View) -> None:
        if self._near is None or decision.confidence > self._near.confidence:
            self._near = view.detection(decision.word, start, end, decision.confidence, self._rate)

    def _tell_near_miss(self, view: View) -> None:
        if self._near and view.heard / self._rate - self._near.at_s > self._recognizer.info.window_s:
            near, self._near = self._near, None
            self._near_miss(near)

    def _report(self, decision: Decision, start: int, end: int, view: View) -> Detection:
        self._consumed, self._last, self._near = end, (decision.word, view.heard), None
        self._forget_talk(start)
        self._decoder.reset()
        return view.detection(decision.word, start, end, decision.confidence, self._rate)


class SequenceSpotter:
    """Words in the windows of a CTC head, each reported once and never changed.

    The windows overlap.  A token is reported when two windows after one another hold it, enough audio has followed
    it, and it lies behind the last one that was reported.

    Args:
        thresholds: the words to report and the confidence (see `ctc.confidences`) from which each counts, 0..1.
            Where others are likelier than these, the best of these is found, with a low confidence.
        near_miss: takes a word whose confidence stayed up to `decoding.NEAR` below its threshold.
        grammar: words that don't carry on a sentence of it are passed over; a pause of `PAUSE_S` ends a sentence.
    """

    RECENT_S = 1.5
    """What lies further back was decided in earlier windows, which showed it with more context."""
    SAME_S = 0.14
    """Two windows may place the same token this far apart."""
    AGAIN_S = 0.25
    """Middles of two equal words are at least this far apart: nobody says one sooner."""
    PAUSE_S = 1.5

    def __init__(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        near_miss: Callable[[Detection], None],
        grammar: Grammar | None = None,
    ) -> None:
        self._recognizer, self._thresholds, self._config = recognizer, thresholds, config
        self._near_miss, self._grammar, self._info = near_miss, grammar, recognizer.info
        self._sought = Grammar.any_of(thresholds) if set(thresholds) < set(recognizer.info.words) else None
        self.reset()

    def reset(self) -> None:
        """A new stream begins at time 0."""
        self._seen: list[tuple[str, float]] = []  # tokens of the last window and their middles
        self._done, self._done_s = "", -np.inf  # the last token that was decided and its middle
        self._state = self._grammar.start if self._grammar else 0
        self._heard = 0

    def look(self, view: View) -> list[Detection]:
        """What the next window decides."""
        info, rate = self._info, self._info.sample_rate_hz
        if view.heard - self._heard > self._config.sequence_hop_s * rate * 1.5:
            self._seen = []  # the gate was shut
        self._heard = view.heard
        scores = self._recognizer.scores(view.window[None])[0]
        spans = beam_search(log_of(scores), info.labels, beam=8, grammar=self._sought)
        begin_s, heard_s = view.begin / rate + info.offset_s, view.heard / rate
        seen, detections = [], []
        for span in spans:
            start_s, end_s = begin_s + (span.start - 0.5) * info.step_s, begin_s + (span.end - 0.5) * info.step_s
            middle_s = (start_s + end_s) / 2
            seen.append((span.label, middle_s))
            since = self.AGAIN_S if span.label == self._done else self.SAME_S
            is_new = middle_s > max(self._done_s + since, heard_s - self.RECENT_S)
            is_settled = heard_s - end_s >= self._config.sequence_settle_s
            if span.label in self._thresholds and is_new and is_settled and self._was_seen(span.label, middle_s):
                around = (round(start_s * rate) - view.begin, round(end_s * rate) - view.begin)
                start, end = word_bounds(view.window, rate, (max(0, around[0]), max(0, around[1])))
                detections += self._decide(
                    view.detection(span.label, view.begin + start, view.begin + end, span.confidence, rate), middle_s
                )
        self._seen = seen
        return detections

    def _was_seen(self, label: str, middle_s: float) -> bool:
        return any(label == other and abs(middle_s - when_s) < self.SAME_S for other, when_s in self._seen)

    def _decide(self, found: Detection, middle_s: float) -> list[Detection]:
        threshold = self._thresholds[found.word]
        if found.confidence < threshold:
            if found.confidence >= threshold - NEAR:
                self._near_miss(found)
            return []
        if self._grammar:
            before = self._grammar.start if middle_s - self._done_s > self.PAUSE_S else self._state
            state = self._grammar.step(before, found.word)
            if state is None:
                return []
            self._state = state
        self._done, self._done_s = found.word, middle_s
        return [found]


def word_bounds(window: Block, sample_rate_hz: int, around: tuple[int, int] | None = None) -> tuple[int, int]:
    """First and last sample of the sound around the loudest place of a window (time,), or of `around` in it.

    The sound goes on while its level stays above the geometric mean of floor and peak (at least a twentieth of
    the peak), pauses under 120 ms included: the closure of a plosive belongs to the word.
    """
    step = sample_rate_hz // 100
    level: NDArray[np.float32] = np.sqrt(np.convolve(_powers(window, sample_rate_hz), np.ones(3) / 3, "same"))
    audible = level[level > 0]
    if not len(audible):
        return 0, len(window)
    low, high = (0, len(level)) if around is None else (around[0] // step, max(around[1], around[0] + step) // step)
    peak = low + int(level[low:high].argmax())
    if not level[peak]:
        return around or (0, len(window))
    limit = max(np.sqrt(np.quantile(audible, 0.1) * level[peak]) * 0.7, level[peak] / 20)
    loud = np.flatnonzero(level > limit)
    breaks = np.flatnonzero(np.diff(loud) > 12)  # pauses, in 10-ms steps
    islands = np.split(loud, breaks + 1)
    island = next(i for i in islands if i[0] <= peak <= i[-1])
    return int(island[0]) * step, min(len(window), int(island[-1] + 1) * step)


def _powers(audio: Block, sample_rate_hz: int) -> NDArray[np.float32]:
    """Of 10-ms steps."""
    step = sample_rate_hz // 100
    powers: NDArray[np.float32] = np.square(audio[: len(audio) // step * step].reshape(-1, step)).mean(1)
    return powers


def _smooth_powers(audio: Block, sample_rate_hz: int) -> NDArray[np.float32]:
    """Of 10-ms steps, each with two on either side."""
    return np.convolve(_powers(audio, sample_rate_hz), np.full(5, 0.2), "same").astype(np.float32)


def _loudness(smooth: NDArray[np.float32], start: int, end: int) -> float:
    """Power of a sound's louder parts, between two steps of `_smooth_powers`."""
    return float(np.quantile(smooth[start : max(end, start + 5)], 0.7))


def _least_loud(loudness: float, smooth: NDArray[np.float32], distance_db: float) -> float:
    """Power from which another sound counts beside one of this loudness: not far below it, and above steady noise."""
    return max(loudness * 10 ** (-distance_db / 10), float(np.quantile(smooth, 0.1)) * STEADY)


def stands_out(
    audio: Block, bounds: tuple[int, int], sample_rate_hz: int, distance_db: float, reach: tuple[int, int]
) -> bool:
    """Whether a sound is louder than what is heard before and behind it.

    Steady noise is no reason against it: less than `STEADY` times the power of the quietest tenth is passed over.

    Args:
        audio: (time,)
        bounds: first and last sample of the sound.
        distance_db: how much louder.
        reach: how far to look before it and behind it, in samples; the last of it where the sound ends later.
    """
    smooth = _smooth_powers(audio, sample_rate_hz)
    start, end, before, behind = (place * 100 // sample_rate_hz for place in (*bounds, *reach))
    limit = _least_loud(_loudness(smooth, start, end), smooth, distance_db)
    edge = 5  # steps that the smoothing carries the sound itself beyond its bounds
    sides = (smooth[max(0, start - before) : max(0, start - edge)], smooth[min(end + edge, len(smooth) - behind) :])
    return all(not len(side) or np.quantile(side, 0.8) <= limit for side in sides)
