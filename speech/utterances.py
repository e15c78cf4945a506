"""Utterances -> decisions: each is read once, and accepted or rejected with one reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speech.activity import SAMPLE_RATE_HZ, ListenerConfig, Utterance, sound_bounds
from speech.bundle import SILENCE, UNKNOWN
from speech.ctc import Span, beam_search
from speech.errors import ConfigError
from speech.grammar import Grammar
from speech.recognizer import Recognizer, log_of
from speech.results import Detection, Examined, Reason, Rejection


@dataclass(frozen=True)
class Word:
    """A word that an utterance may hold; places in samples of its waveform."""

    word: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class Reading:
    """What a reader makes of an utterance."""

    words: tuple[Word, ...]
    """What it holds; not empty."""
    reason: Reason | None
    """Why these words are not accepted; None: they are."""
    scores: Mapping[str, float]
    """Posterior of each label, where the head gives one for the whole utterance."""


class Reader(Protocol):
    """Reads the utterances of one head."""

    max_s: float
    """Longest utterance that it reads."""

    def reset(self) -> None: ...

    def read(self, utterance: Utterance) -> Reading: ...


class WordReader:
    """One word an utterance, by a classification head.

    Args:
        thresholds: the words to report and the posterior from which each counts, 0..1.  The other labels compete, so
            that they are not taken for these.
    """

    def __init__(self, recognizer: Recognizer, thresholds: Mapping[str, float], config: ListenerConfig) -> None:
        self._recognizer, self._thresholds, self.max_s = recognizer, thresholds, config.max_word_s

    def reset(self) -> None:
        """A new stream begins."""

    def read(self, utterance: Utterance) -> Reading:
        scores = self._recognizer.posteriors(utterance.waveform)
        word = max(scores, key=scores.__getitem__)
        found = Word(word, *sound_bounds(utterance), scores[word])
        return Reading((found,), self._objection(found), scores)

    def _objection(self, found: Word) -> Reason | None:
        if found.word == SILENCE:
            return Reason.NO_WORD
        if found.word == UNKNOWN:
            return Reason.ANOTHER_WORD
        if found.word not in self._thresholds:
            return Reason.NOT_ASKED_FOR
        return Reason.UNSURE if found.confidence < self._thresholds[found.word] else None


class SequenceReader:
    """A sequence of words an utterance, by a CTC head: every token must be a word that is wanted.

    Args:
        thresholds: the words to report and the confidence (see `ctc.confidences`) from which each counts, 0..1.
        grammar: what may be said.
    """

    PAUSE_S = 1.5
    """Longest pause within a sentence of the grammar."""
    SURE = 0.7
    """Confidence from which another word than the wanted ones was said; below it may be a wanted one in noise."""

    def __init__(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        grammar: Grammar | None = None,
    ) -> None:
        self._recognizer, self._thresholds, self.max_s = recognizer, thresholds, config.max_sequence_s
        self._grammar = grammar
        self._others = set(recognizer.info.words) - {
            word for word in thresholds if not grammar or word in grammar.words
        }
        self._sought = Grammar.any_of([word for word in recognizer.info.words if word not in self._others])
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._state: int | None = None  # of the grammar, where a sentence is open
        self._end = 0

    def read(self, utterance: Utterance) -> Reading:
        log_probs = log_of(self._recognizer.steps(utterance.waveform))
        spans = self._spans(log_probs)
        if not spans:
            return Reading((Word(SILENCE, 0, len(utterance.waveform), 1.0),), Reason.NO_WORD, {})
        return Reading(self._placed(spans, utterance), self._objection(spans, utterance), {})

    def _spans(self, log_probs: NDArray[np.float32]) -> list[Span]:
        """The tokens: all that there are where another word than the wanted ones is sure, else the best wanted ones."""
        labels = self._recognizer.info.labels
        spans = beam_search(log_probs, labels)
        if not self._others or any(s.label in self._others and s.confidence >= self.SURE for s in spans):
            return spans
        return beam_search(log_probs, labels, grammar=self._sought)

    def _placed(self, spans: list[Span], utterance: Utterance) -> tuple[Word, ...]:
        """The tokens' places, the outer two widened to where the sound begins and ends."""
        starts = [round(self._recognizer.time_s(span.start) * SAMPLE_RATE_HZ) for span in spans]
        ends = [round(self._recognizer.time_s(span.end) * SAMPLE_RATE_HZ) for span in spans]
        first, last = sound_bounds(utterance)
        starts[0], ends[-1] = min(starts[0], first), max(ends[-1], last)
        return tuple(Word(s.label, a, b, s.confidence) for s, a, b in zip(spans, starts, ends, strict=True))

    def _objection(self, spans: list[Span], utterance: Utterance) -> Reason | None:
        heard = {span.label for span in spans}
        if UNKNOWN in heard:
            return Reason.ANOTHER_WORD
        if not heard <= set(self._thresholds):
            return Reason.NOT_ASKED_FOR
        if any(span.confidence < self._thresholds[span.label] for span in spans):
            return Reason.UNSURE
        return None if self._follows([span.label for span in spans], utterance) else Reason.NOT_IN_GRAMMAR

    def _follows(self, words: list[str], utterance: Utterance) -> bool:
        """Whether the grammar allows these words: to go on with the last sentence, or to begin one."""
        if not self._grammar:
            return True
        goes_on = utterance.start - self._end <= self.PAUSE_S * SAMPLE_RATE_HZ
        for state in (self._state if goes_on else None, self._grammar.start):
            for word in words:
                state = None if state is None else self._grammar.step(state, word)
            if state is not None:
                self._state, self._end = state, utterance.end
                return True
        return False


class Decision:
    """Accepts or rejects utterances; commands right after talk are rejected.

    Args:
        reader: of the bundle's head.
        config: the settings.
        wake: the word that must come before commands; it may begin the very utterance that holds them.
    """

    TALK = (Reason.TOO_LONG, Reason.ANOTHER_WORD)
    """Why talk is rejected."""
    TALK_S = 0.7
    """Other speech that is longer than this is talk; a command that was taken for another word is mostly shorter."""

    def __init__(self, reader: Reader, config: ListenerConfig, wake: str | None = None) -> None:
        self._reader, self._wake = reader, wake
        self._after_talk = round(config.after_talk_s * SAMPLE_RATE_HZ)
        self._wake_for = round(config.wake_for_s * SAMPLE_RATE_HZ)
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._reader.reset()
        self._talk_end = -self._after_talk
        self._awake_until = -1

    def is_awake(self, now: int) -> bool:
        """Whether a command that begins now, in samples since the stream began, would be heard."""
        return self._wake is None or now < self._awake_until

    def decide(self, utterance: Utterance, fed: int) -> Examined:
        """Read one utterance.

        Args:
            utterance: longer ones than the reader's longest are not read.
            fed: samples that the stream has had; the last hop of a stream may reach beyond.
        """
        if utterance.is_long:
            nothing = Word("", utterance.start - utterance.begin, utterance.end - utterance.begin, 0.0)
            reading = Reading((nothing,), Reason.TOO_LONG, {})
        else:
            reading = self._reader.read(utterance)
        reason = reading.reason or self._objection(utterance, reading)
        if reason and not reading.reason:
            self._reader.reset()  # no sentence goes on from rejected words
        if reading.reason in self.TALK and utterance.end - utterance.start > self.TALK_S * SAMPLE_RATE_HZ:
            self._talk_end = utterance.end
        return self._examined(utterance, reading, reason, fed)

    def _objection(self, utterance: Utterance, reading: Reading) -> Reason | None:
        """Why what was understood comes at the wrong time, if it does."""
        if utterance.start - self._talk_end < self._after_talk:
            return Reason.AFTER_TALK
        if self._wake and reading.words[0].word == self._wake:
            self._awake_until = utterance.end + self._wake_for
        return None if self.is_awake(utterance.start) else Reason.NO_WAKE_WORD

    def _examined(self, utterance: Utterance, reading: Reading, reason: Reason | None, fed: int) -> Examined:
        begin, at_s = utterance.begin, min(utterance.closed, fed) / SAMPLE_RATE_HZ
        found = []
        for word in reading.words:
            start_s, end_s = (begin + word.start) / SAMPLE_RATE_HZ, min(begin + word.end, fed) / SAMPLE_RATE_HZ
            found.append(Detection(word.word, start_s, end_s, word.confidence, at_s))
        rejection = None
        if reason:
            confidence = min(d.confidence for d in found)
            words = " ".join(d.word for d in found)
            rejection = Rejection(reason, words, found[0].start_s, found[-1].end_s, confidence, at_s)
        detections = () if reason else tuple(found)
        return Examined(utterance.waveform, begin / SAMPLE_RATE_HZ, at_s, dict(reading.scores), detections, rejection)


def reader_for(
    recognizer: Recognizer, thresholds: Mapping[str, float], config: ListenerConfig, grammar: Grammar | None
) -> Reader:
    """The reader of a bundle's head.

    Raises:
        ConfigError: a grammar for single words.
    """
    if recognizer.info.head == "ctc":
        return SequenceReader(recognizer, thresholds, config, grammar)
    if grammar:
        raise ConfigError("a grammar needs a bundle that hears sequences, such as --model connected")
    return WordReader(recognizer, thresholds, config)
