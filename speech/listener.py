"""Stream of samples -> detections.  Time is counted in samples; no clock and no device is read."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from speech.audio import Block, as_mono
from speech.errors import ConfigError
from speech.grammar import Grammar
from speech.recognizer import Recognizer
from speech.spotters import Detection, ListenerConfig, SequenceSpotter, Spotter, View, WordSpotter

__all__ = ["Detection", "Listener", "ListenerConfig"]


class Gate:
    """Tells whether the stream has anything to look at: a sound that stands out of its quietest moments."""

    def __init__(self, config: ListenerConfig, sample_rate_hz: int) -> None:
        self._step = sample_rate_hz // 100
        self._ratio, self._least = 10 ** (config.gate_db / 10), 10 ** (config.gate_floor_dbfs / 10)
        self._hold = round(config.gate_hold_s * 100)
        self._memory = round(config.gate_memory_s * 100)
        self.reset()

    def reset(self) -> None:
        self._powers: deque[float] = deque(maxlen=self._memory)  # of the last 10-ms steps
        self._left = 0  # steps for which it stays open

    def push(self, hop: Block) -> bool:
        """Take the next samples (time,), a whole number of 10-ms steps; whether they are worth a look."""
        powers = np.square(hop.reshape(-1, self._step)).mean(1)
        self._powers.extend(powers.tolist())
        recent = np.fromiter(self._powers, float)
        smooth = np.convolve(recent, np.full(3, 1 / 3), "valid") if len(recent) > 2 else recent
        limit = max(self._least, self._ratio * np.quantile(smooth, 0.1))
        loud = np.flatnonzero(smooth[-len(powers) :] > limit)
        self._left = self._hold + int(loud[-1]) + 1 - len(powers) if len(loud) else self._left - len(powers)
        return self._left > -len(powers)


class Listener:
    """Slides the recogniser's window over a stream and reports each command once.

    The window is looked at whenever another hop of audio has come, whatever the size of the blocks; not while
    nothing stands out of the quiet.  What is said in it is up to the spotter that suits the bundle's head.

    Args:
        recognizer: a loaded bundle.
        words: report only these; default: all words of the bundle.
        threshold: mean posterior from which a word counts, 0..1, for all words or for each; default: the bundle's.
        config: timing.
        near_miss: called with a word that came within `decoding.NEAR` of its threshold, a while after it did not
            reach it.
        grammar: for a bundle with a CTC head: the sentences that may be said.
    Raises:
        ConfigError: a grammar for another head; a word that the bundle lacks, a threshold out of range.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        words: Sequence[str] | None = None,
        threshold: float | Mapping[str, float] | None = None,
        config: ListenerConfig = ListenerConfig(),  # noqa: B008 - frozen
        near_miss: Callable[[Detection], None] | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        info = recognizer.info
        words = info.words if words is None else tuple(words)
        strange = [word for word in words if word not in info.words]
        if strange or not words:
            unknown = ", ".join(map(repr, strange)) or "an empty list"
            raise ConfigError(f"the model does not know {unknown}; it knows {', '.join(info.words)}")
        self.thresholds = {word: info.thresholds.get(word, info.threshold) for word in words}
        if isinstance(threshold, Mapping):
            self.thresholds |= {word: value for word, value in threshold.items() if word in words}
        elif threshold is not None:
            self.thresholds = dict.fromkeys(words, threshold)
        for word, value in self.thresholds.items():
            if not 0 < value <= 1:
                raise ConfigError(f"threshold={value} of {word!r} must lie in 0..1")
        self.recognizer, self.config = recognizer, config
        self._rate = info.sample_rate_hz
        told = near_miss or (lambda _: None)
        self._spotter: Spotter
        if info.head == "ctc":
            hop_s = config.sequence_hop_s
            self._spotter = SequenceSpotter(recognizer, self.thresholds, config, told, grammar)
        elif grammar:
            raise ConfigError("a grammar needs a bundle that hears sequences, such as --model connected")
        else:
            hop_s = config.hop_s
            self._spotter = WordSpotter(recognizer, self.thresholds, config, told)
        self._hop = round(hop_s * 100) * self._rate // 100
        self._past = round(config.alone_s * 100) * self._rate // 100
        self._gate = Gate(config, self._rate)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream at time 0."""
        self._buffer = np.zeros(self._past + self.recognizer.info.window, np.float32)  # silence at first
        self._fresh: list[Block] = []  # samples behind the buffer, less than a hop in all
        self._n_fresh = 0
        self._heard = 0  # samples up to the end of the buffer
        self._fed = 0  # samples that came from outside
        self._gate.reset()
        self._spotter.reset()

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
        tail_s = self.config.tail_s + self.config.sequence_settle_s
        detections = self._advance(np.zeros(round(tail_s * self._rate) + self._hop, np.float32))
        self.reset()
        return detections

    def listen(self, blocks: Iterable[Block]) -> Iterator[Detection]:
        """Detections of a whole stream, each as soon as it is decided."""
        for block in blocks:
            yield from self.feed(block)
        yield from self.flush()

    def _advance(self, block: Block) -> list[Detection]:
        detections: list[Detection] = []
        while self._n_fresh + len(block) >= self._hop:
            taken = self._hop - self._n_fresh
            hop = np.concatenate([*self._fresh, block[:taken]])
            self._fresh, self._n_fresh, block = [], 0, block[taken:]
            self._buffer = np.concatenate([self._buffer[self._hop :], hop])
            self._heard += self._hop
            if self._gate.push(hop):
                detections += self._spotter.look(
                    View(self._buffer[self._past :], self._heard, self._fed, self._buffer[: self._past])
                )
        if len(block):
            self._fresh.append(block)
            self._n_fresh += len(block)
        return detections
