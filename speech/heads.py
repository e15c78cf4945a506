"""Heads: what the scores of a bundle mean, and how words are read from them.  Each head has one class.

A new head needs a class here, entered in `HEADS`, a network (`speech.model.networks`) and its training
(`recipes.heads`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from speech.bundle import BLANK, SILENCE, UNKNOWN, BundleInfo
from speech.errors import BundleError, ConfigError
from speech.grammar import Grammar, NGram
from speech.results import Reason
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Utterance, sound_bounds
from speech.sequences import Span, beam_search, confidences

if TYPE_CHECKING:
    from speech.recognizer import Recognizer

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Word:
    """A word found in an utterance; `start` and `end` are in samples of its waveform."""

    word: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class Reading:
    """Result of reading one utterance."""

    words: tuple[Word, ...]
    """The words found; never empty."""
    reason: Reason | None
    """Why the words are rejected; None if they are accepted."""
    scores: Mapping[str, float]
    """Posterior of each label for the whole utterance; empty if the head has none."""


class Reader(Protocol):
    """Reads utterances with one head."""

    max_s: float
    """Longest utterance that it reads."""

    def reset(self) -> None: ...

    def read(self, utterance: Utterance) -> Reading: ...


class WordReader:
    """Reads one word per utterance, with a classification head.

    Args:
        recognizer: the loaded bundle.
        thresholds: words to report, each with the lowest posterior that is accepted, 0..1.  Other labels still
            compete, so that other words are not taken for these.
        config: the settings.
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
    """Reads a sequence of words per utterance, with a CTC head; one unwanted word rejects the utterance.

    Args:
        recognizer: the loaded bundle.
        thresholds: words to report, each with the lowest confidence (see `ctc.confidences`) that is accepted, 0..1.
        config: the settings.
        grammar: the sentences that are accepted; None for any sequence.
        language_model: probabilities of words that follow each other within an utterance.
        weight: weight of the language model beside the audio, at least 0; 0: it has no effect.
    Raises:
        ConfigError: the language model lacks words of the bundle.
    """

    PAUSE_S = 1.5
    """Longest pause within a sentence of the grammar."""
    SURE = 0.7
    """Confidence at which an unwanted word is believed; below, it may be a wanted word in noise."""
    WEIGHT = 0.125
    """Default weight of the language model."""

    def __init__(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        grammar: Grammar | None = None,
        language_model: NGram | None = None,
        weight: float = WEIGHT,
    ) -> None:
        self._recognizer, self._thresholds, self.max_s = recognizer, thresholds, config.max_sequence_s
        lacking = sorted(set(recognizer.info.words) - set(language_model.words)) if language_model else []
        if lacking:
            raise ConfigError(f"the language model does not know {', '.join(lacking)}, words of the bundle")
        self._grammar, self._language_model, self._weight = grammar, language_model, weight
        self._others = set(recognizer.info.words) - {
            word for word in thresholds if not grammar or word in grammar.words
        }
        self._sought = Grammar.any_of([word for word in recognizer.info.words if word not in self._others])
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._state: int | None = None  # of the grammar, after a sentence that may continue
        self._end = 0

    def read(self, utterance: Utterance) -> Reading:
        log_probs = log_of(self._recognizer.steps(utterance.waveform))
        spans = self._spans(log_probs)
        if not spans:
            return Reading((Word(SILENCE, 0, len(utterance.waveform), 1.0),), Reason.NO_WORD, {})
        return Reading(self._placed(spans, utterance), self._objection(spans, utterance), {})

    def _spans(self, log_probs: NDArray[np.float32]) -> list[Span]:
        """The best tokens; unless an unwanted word has a confidence of `SURE`, the best among the wanted words."""
        spans = self._best(log_probs)
        if not self._others or any(s.label in self._others and s.confidence >= self.SURE for s in spans):
            return spans
        return self._best(log_probs, self._sought)

    def _best(self, log_probs: NDArray[np.float32], grammar: Grammar | None = None) -> list[Span]:
        labels = self._recognizer.info.labels
        return beam_search(log_probs, labels, grammar=grammar, language_model=self._language_model, weight=self._weight)

    def _placed(self, spans: list[Span], utterance: Utterance) -> tuple[Word, ...]:
        """The tokens with their bounds; the first and last are widened to the bounds of the sound."""
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
        """Whether the grammar allows these words, as the continuation of the last sentence or as a new one."""
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


def log_of(scores: Scores) -> Scores:
    """Natural logarithm of posteriors, at most 0; finite for a posterior of 0."""
    logs: Scores = np.log(scores + np.float32(1e-12))
    return np.minimum(logs, 0)


class Head(ABC):
    """What the scores of a bundle mean."""

    name: ClassVar[str]
    """Name in the bundle's metadata."""
    needed: ClassVar[tuple[str, ...]]
    """Labels that a bundle must have in addition to its words."""
    has_steps: ClassVar[bool]
    """True: one row of scores per step.  False: one row for the whole utterance."""

    def check(self, info: BundleInfo) -> None:
        """Raise BundleError if a bundle with this head lacks a label or a setting."""
        missing = [label for label in self.needed if label not in info.labels]
        if missing:
            raise BundleError(f"bundle with labels {list(info.labels)} has no {', '.join(missing)}")

    @abstractmethod
    def posteriors(self, scores: Scores, info: BundleInfo) -> Scores:
        """Scores of an utterance, (labels,) or (steps, labels) -> posteriors (labels,), which sum to one."""

    @abstractmethod
    def reader(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        grammar: Grammar | None,
        language_model: NGram | None = None,
    ) -> Reader:
        """Make the reader for a stream.  Raises ConfigError for a setting that the head does not support."""


class Classification(Head):
    """One word per utterance: scores (labels,)."""

    name, needed, has_steps = "classification", (UNKNOWN, SILENCE), False

    def posteriors(self, scores: Scores, info: BundleInfo) -> Scores:
        return scores

    def reader(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        grammar: Grammar | None,
        language_model: NGram | None = None,
    ) -> Reader:
        for given, what in ((grammar, "grammar"), (language_model, "language model")):
            if given:
                raise ConfigError(f"a {what} needs a bundle that recognises sequences, such as --model connected")
        return WordReader(recognizer, thresholds, config)


class CTC(Head):
    """A sequence of words per utterance: scores (steps, labels)."""

    name, needed, has_steps = "ctc", (UNKNOWN, BLANK), True

    def check(self, info: BundleInfo) -> None:
        super().check(info)
        if not 0 < info.step_s <= info.window_s:
            raise BundleError(f"bundle with head 'ctc' and step_s={info.step_s}")

    def posteriors(self, scores: Scores, info: BundleInfo) -> Scores:
        """Probability of each label that the utterance holds exactly this token."""
        return confidences(log_of(scores), info.labels.index(BLANK)).astype(np.float32)

    def reader(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        grammar: Grammar | None,
        language_model: NGram | None = None,
    ) -> Reader:
        return SequenceReader(recognizer, thresholds, config, grammar, language_model)


HEADS: Mapping[str, Head] = {head.name: head for head in (Classification(), CTC())}


def head_of(info: BundleInfo) -> Head:
    """The head of a bundle.

    Raises:
        BundleError: this version has no head of that name, or the bundle lacks what the head needs.
    """
    if info.head not in HEADS:
        raise BundleError(f"bundle with head {info.head!r}, but this version supports {', '.join(HEADS)}")
    head = HEADS[info.head]
    head.check(info)
    return head
