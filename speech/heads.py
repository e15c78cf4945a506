"""What the scores of a bundle mean, and how an utterance is read from them: one class for each head.

A new head is a class here, entered in `HEADS`, beside its network (`speech.training.networks`) and its training
(`recipes.heads`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from speech.activity import SAMPLE_RATE_HZ, ListenerConfig, Utterance, sound_bounds
from speech.bundle import BLANK, SILENCE, UNKNOWN, BundleInfo
from speech.ctc import Span, beam_search, confidences
from speech.errors import BundleError, ConfigError
from speech.grammar import Grammar, NGram
from speech.results import Reason

if TYPE_CHECKING:
    from speech.recognizer import Recognizer

Scores = NDArray[np.float32]


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
        language_model: which words tend to follow one another in an utterance.
    Raises:
        ConfigError: a language model that lacks words of the bundle.
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
        language_model: NGram | None = None,
    ) -> None:
        self._recognizer, self._thresholds, self.max_s = recognizer, thresholds, config.max_sequence_s
        if language_model and not set(recognizer.info.words) <= set(language_model.words):
            lacking = sorted(set(recognizer.info.words) - set(language_model.words))
            raise ConfigError(f"the language model does not know {', '.join(lacking)}, words of the bundle")
        self._grammar, self._language_model, self._weight = grammar, language_model, config.language_model_weight
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
        spans = self._best(log_probs)
        if not self._others or any(s.label in self._others and s.confidence >= self.SURE for s in spans):
            return spans
        return self._best(log_probs, self._sought)

    def _best(self, log_probs: NDArray[np.float32], grammar: Grammar | None = None) -> list[Span]:
        labels = self._recognizer.info.labels
        return beam_search(log_probs, labels, grammar=grammar, language_model=self._language_model, weight=self._weight)

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


def log_of(scores: Scores) -> Scores:
    """Natural logarithm of posteriors; finite for 0."""
    logs: Scores = np.log(scores + np.float32(1e-12))
    return np.minimum(logs, 0)


class Head(ABC):
    """What the scores of a bundle mean."""

    name: ClassVar[str]
    """As the bundle's metadata gives it."""
    needed: ClassVar[tuple[str, ...]]
    """Labels that a bundle must have beside its words."""
    has_steps: ClassVar[bool]
    """Whether there is a row of scores for each step, or one for the whole utterance."""

    def check(self, info: BundleInfo) -> None:
        """Raises BundleError when a bundle with this head lacks a label or a setting."""
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
        """What reads the utterances of a stream.  Raises ConfigError for a setting that the head has no use for."""


class Classification(Head):
    """One word an utterance: scores (labels,)."""

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
                raise ConfigError(f"a {what} needs a bundle that hears sequences, such as --model connected")
        return WordReader(recognizer, thresholds, config)


class CTC(Head):
    """A sequence of words an utterance: scores (steps, labels)."""

    name, needed, has_steps = "ctc", (UNKNOWN, BLANK), True

    def check(self, info: BundleInfo) -> None:
        super().check(info)
        if not 0 < info.step_s <= info.window_s:
            raise BundleError(f"bundle with head 'ctc' and step_s={info.step_s}")

    def posteriors(self, scores: Scores, info: BundleInfo) -> Scores:
        """How probable it is that the utterance holds exactly this token."""
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
        raise BundleError(f"bundle with head {info.head!r}, but this version plays {', '.join(HEADS)}")
    head = HEADS[info.head]
    head.check(info)
    return head
