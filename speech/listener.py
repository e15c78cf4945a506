"""Detect commands in a stream of samples.  Time is counted in samples; no clock and no device is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from speech.decide import Decision, make_reader
from speech.errors import ConfigError
from speech.grammar import Grammar, NGram
from speech.recognizer import Recognizer
from speech.results import Detection, Examined, Rejection
from speech.segment import HOP, SAMPLE_RATE_HZ, ListenerConfig, Segmenter, SpeechDetector, Utterance
from speech.settings import match_keys, match_name
from speech.sound.files import Block, Samples, as_array, as_mono


class Listener:
    """Cuts a stream into utterances and recognises each once.

    Args:
        recognizer: a loaded bundle.
        words: report only these; default: all words of the bundle.
        threshold: lowest posterior that is accepted, 0..1, one for all words or one for each; default: the bundle's.
        config: the settings.
        grammar: for a bundle with a CTC head: the sentences that are accepted.
        on_rejection: called with each utterance that is not reported, and the reason.
        on_utterance: called with each utterance, its audio, scores and result.
        voice: the voice activity detector; default: Silero VAD.
        wake: a wake word: commands are accepted only within `config.wake_for_s` after it.
        language_model: for a bundle with a CTC head: probabilities of words that follow each other within an
            utterance.
    Raises:
        ConfigError: a grammar or a language model for another head; a word that is not in the bundle; a language model
            without one of the bundle's words; a threshold out of range; a bundle whose rate is not `SAMPLE_RATE_HZ`.
    """

    LATE = 3 * HOP
    """Delay of the voice activity detector in samples: an utterance that begins sooner after a pause may have begun in
    it."""

    def __init__(
        self,
        recognizer: Recognizer,
        words: Sequence[str] | None = None,
        threshold: float | Mapping[str, float] | None = None,
        config: ListenerConfig = ListenerConfig(),  # noqa: B008 - frozen
        grammar: Grammar | None = None,
        on_rejection: Callable[[Rejection], None] | None = None,
        on_utterance: Callable[[Examined], None] | None = None,
        voice: SpeechDetector | None = None,
        wake: str | None = None,
        language_model: NGram | None = None,
    ) -> None:
        if recognizer.info.sample_rate_hz != SAMPLE_RATE_HZ:
            raise ConfigError(
                f"the bundle takes {recognizer.info.sample_rate_hz} Hz; a Listener needs {SAMPLE_RATE_HZ} Hz"
            )
        self.recognizer, self.config = recognizer, config
        if wake is not None:
            (wake,) = thresholds_for(recognizer, [wake], None)
            words = None if words is None else [*words, wake]
        self.thresholds = thresholds_for(recognizer, words, threshold)
        self._own, self._follows = recognizer.own, words is None
        self._usual = threshold if isinstance(threshold, float | int) else None
        reader = make_reader(recognizer, self.thresholds, config, grammar, language_model, wake)
        self._segmenter = Segmenter(config, reader.max_s, voice)
        self._decision = Decision(reader, config, wake)
        self._on_rejection, self._on_utterance = on_rejection, on_utterance
        self._is_paused = False
        self.reset()

    def reset(self) -> None:
        """Begin a new stream at time 0."""
        self._rest: list[Block] = []  # together less than a hop
        self._n_rest = 0
        self._fed = 0
        self._deaf_until = -1 - self.LATE  # no pause yet
        self._segmenter.reset()
        self._decision.reset()

    @property
    def heard_s(self) -> float:
        """Seconds of audio fed so far."""
        return self._fed / SAMPLE_RATE_HZ

    @property
    def is_hearing(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._segmenter.is_open

    @property
    def is_awake(self) -> bool:
        """Whether a command would be accepted now; always true without a wake word."""
        return self._decision.is_awake(self._fed)

    @property
    def is_paused(self) -> bool:
        """Whether audio is ignored."""
        return self._is_paused

    def pause(self) -> None:
        """Ignore the audio from now on, and the utterance that has begun; time is still counted."""
        self._is_paused, self._deaf_until = True, self._fed

    def resume(self) -> None:
        """Listen again, to the audio from now on."""
        self._is_paused = False

    def feed(self, block: Samples) -> list[Detection]:
        """Take the next samples.

        Args:
            block: (time,) or (time, channels), any length, at 16 kHz; float in -1..1 or 16/32-bit integers.
        Returns:
            the detections that were decided in this block.
        Raises:
            AudioError: NaN, infinity or an unsupported type.
        """
        samples = as_array(block)
        if not samples.size:
            return []
        mono = as_mono(samples)
        self._fed += len(mono)
        if self._is_paused:
            mono, self._deaf_until = np.zeros_like(mono), self._fed
        self._rest.append(mono)
        self._n_rest += len(mono)
        if self._n_rest < HOP:
            return []
        whole = np.concatenate(self._rest)
        n_whole = len(whole) // HOP * HOP
        self._rest, self._n_rest = [whole[n_whole:]], len(whole) - n_whole
        return self._hear(whole[:n_whole])

    def flush(self) -> list[Detection]:
        """End the stream.  Returns its last detections and resets the Listener."""
        detections = self._hear(np.concatenate([*self._rest, np.zeros(-self._n_rest % HOP, np.float32)]))
        detections += self._decide(self._segmenter.finish())
        self.reset()
        return detections

    def listen(self, blocks: Iterable[Samples]) -> Iterator[Detection]:
        """Yield the detections of a whole stream, each as soon as it is decided.  The loop may be left early."""
        self.reset()
        try:
            for block in blocks:
                yield from self.feed(block)
            yield from self.flush()
        finally:
            self.reset()

    def _hear(self, samples: Block) -> list[Detection]:
        detections: list[Detection] = []
        for hop in samples.reshape(-1, HOP):
            detections += self._decide(self._segmenter.push(hop))
        return detections

    def _decide(self, utterance: Utterance | None) -> list[Detection]:
        if utterance is None or utterance.start <= self._deaf_until + self.LATE:
            return []
        self._follow_own_words()
        examined = self._decision.decide(utterance, self._fed)
        if self._on_utterance:
            self._on_utterance(examined)
        if self._on_rejection and examined.rejection:
            self._on_rejection(examined.rejection)
        return list(examined.detections)

    def _follow_own_words(self) -> None:
        """Listen for words taught meanwhile, unless the words were chosen, and no more for those forgotten."""
        self.recognizer.look_again()
        if self.recognizer.own is self._own:
            return
        self._own, known = self.recognizer.own, self.recognizer.thresholds
        for word in set(self.thresholds) - set(known):
            del self.thresholds[word]  # the reader has the same table
        for word in set(known) - set(self.thresholds) if self._follows else ():
            self.thresholds[word] = known[word] if self._usual is None else self._usual


def thresholds_for(
    recognizer: Recognizer, words: Sequence[str] | None, threshold: float | Mapping[str, float] | None
) -> dict[str, float]:
    """The words to report, each with the lowest confidence that is accepted.

    Args:
        recognizer: the loaded bundle.
        words: the words to report, in any spelling with the same normal form; None: all.
        threshold: one for all words, or one for some words; None or a missing word: the bundle's.
    Raises:
        ConfigError: a word that the model does not know, or a threshold out of range.
    """
    known = recognizer.thresholds
    words = list(known) if words is None else [match_name(word, known) for word in words]
    if isinstance(threshold, Mapping):
        threshold = match_keys(threshold, known)
    else:
        threshold = {} if threshold is None else dict.fromkeys(words, threshold)
    strange = [word for word in [*words, *threshold] if word not in known]
    if strange or not words:
        unknown = ", ".join(map(repr, strange)) or "an empty list"
        raise ConfigError(f"the model does not know {unknown}; it knows {', '.join(known)}")
    for word, value in threshold.items():
        if isinstance(value, bool | str) or not 0 < value <= 1:
            raise ConfigError(f"threshold={value!r} of {word!r} must be a number in 0..1")
    return {word: float(threshold.get(word, known[word])) for word in words}
