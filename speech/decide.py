"""Utterances -> decisions: each utterance is read once, then accepted or rejected with one reason."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speech.bundle import SILENCE, UNKNOWN
from speech.errors import ConfigError
from speech.grammar import Grammar, NGram
from speech.recognizer import Recognizer
from speech.results import Examined, Reason, SpokenWord
from speech.segment import HOP, SAMPLE_RATE_HZ, ListenerConfig, Utterance, levels, n_hops, sound_bounds
from speech.sequences import beam_search, log_of
from speech.sound.files import Block


class Reader(Protocol):
    """Reads the words of utterances; see `make_reader`."""

    max_s: float
    """Longest utterance that it reads."""

    def reset(self) -> None:
        """A new stream begins."""

    def read(self, utterance: Utterance) -> Examined:
        """The words of an utterance, and the reason to reject them whenever they were said, if any."""


def examined(
    utterance: Utterance, words: Sequence[SpokenWord], reason: Reason | None, scores: Mapping[str, float] | None = None
) -> Examined:
    """What was read in an utterance."""
    begin_s, closed_s = utterance.begin / SAMPLE_RATE_HZ, utterance.closed / SAMPLE_RATE_HZ
    return Examined(utterance.waveform, begin_s, closed_s, dict(scores or {}), tuple(words), reason)


def too_long(utterance: Utterance) -> Examined:
    """Talk, which is not read."""
    nothing = SpokenWord("", utterance.start / SAMPLE_RATE_HZ, utterance.end / SAMPLE_RATE_HZ, 0.0)
    return examined(utterance, [nothing], Reason.TOO_LONG)


class WordReader:
    """Reads one word per utterance, with a classification head.

    Args:
        recognizer: the loaded bundle.
        thresholds: words to report, each with the lowest posterior that is accepted, 0..1.  Other labels still
            compete, so that other words are not taken for these.
        config: the settings.
        wake: a wake word, which may be said in one breath with a command: utterances may be twice as long.
    """

    MOST_CUTS = 3
    """Places at which an utterance is cut in two, the quietest ones."""
    SHORTEST = SAMPLE_RATE_HZ * 3 // 10
    """Shortest sound of a part, in samples: shorter ones make "down" and "on" of a wake word "down" said alone."""
    OVERLAP = 960
    """Samples after the cut that still belong to the wake word, whose weak end may lie there."""

    def __init__(
        self,
        recognizer: Recognizer,
        thresholds: Mapping[str, float],
        config: ListenerConfig,
        wake: str | None = None,
    ) -> None:
        self._recognizer, self._thresholds, self._wake = recognizer, thresholds, wake
        self._longest = HOP * n_hops(config.max_word_s)
        self.max_s = config.max_word_s * (2 if wake else 1)

    def reset(self) -> None:
        """A new stream begins."""

    def read(self, utterance: Utterance) -> Examined:
        if utterance.end - utterance.start > self._longest:
            return too_long(utterance)
        word, scores = self._best(utterance.waveform)
        read = spoken(utterance, word, *sound_bounds(utterance), scores[word])
        return examined(utterance, [read], self._objection(word, scores), scores)

    def _best(self, waveform: Block) -> tuple[str, dict[str, float]]:
        scores = self._recognizer.posteriors(waveform)
        return max(scores, key=scores.__getitem__), scores

    def _objection(self, word: str, scores: Mapping[str, float]) -> Reason | None:
        if word == SILENCE:
            return Reason.NO_WORD
        if word == UNKNOWN:
            return Reason.ANOTHER_WORD
        if word not in self._thresholds:
            return Reason.NOT_ASKED_FOR
        return Reason.UNSURE if scores[word] < self._thresholds[word] else None

    def read_in_two(self, utterance: Utterance) -> Examined | None:
        """The wake word and a command in one breath; None if no cut of the utterance gives both.

        The earliest cut counts: a late one makes "up" of "stop".
        """
        first, last = sound_bounds(utterance)
        for cut in self._cuts(utterance.waveform, first, last):
            wake, before = self._best(utterance.waveform[: cut + self.OVERLAP])
            if wake != self._wake or self._objection(wake, before):
                continue
            command, after = self._best(utterance.waveform[cut:])
            if not self._objection(command, after):
                parts = (wake, first, cut, before[wake]), (command, cut, last, after[command])
                return examined(utterance, [spoken(utterance, *part) for part in parts], None, after)
        return None

    def _cuts(self, waveform: Block, first: int, last: int) -> list[int]:
        """The deepest minima of the level, `SHORTEST` from the ends of the sound, in samples and in order of time."""
        step, level = levels(waveform)
        smooth = np.convolve(level, np.ones(5) / 5, "same")
        low, high = (first + self.SHORTEST) // step, (last - self.SHORTEST) // step
        inner = range(max(low, 1), min(high, len(smooth) - 1))
        minima = [n for n in inner if smooth[n - 1] >= smooth[n] < smooth[n + 1]]
        return [step * n + step // 2 for n in sorted(sorted(minima, key=smooth.__getitem__)[: self.MOST_CUTS])]


class SequenceReader:
    """Reads a sequence of words per utterance, with a CTC head; one unwanted word rejects the utterance.

    Args:
        recognizer: the loaded bundle.
        thresholds: words to report, each with the lowest confidence (see `speech.sequences.confidences`) that is
            accepted, 0..1.
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

    def read(self, utterance: Utterance) -> Examined:
        log_probs = log_of(self._recognizer.steps(utterance.waveform))
        tokens = self._tokens(log_probs)
        if not tokens:
            noise = spoken(utterance, SILENCE, 0, len(utterance.waveform), 1.0)
            return examined(utterance, [noise], Reason.NO_WORD)
        return examined(utterance, self._placed(tokens, utterance), self._objection(tokens, utterance))

    def _tokens(self, log_probs: NDArray[np.float32]) -> list[SpokenWord]:
        """The best tokens; unless an unwanted word has a confidence of `SURE`, the best among the wanted words."""
        tokens = self._best(log_probs)
        if not self._others or any(t.word in self._others and t.confidence >= self.SURE for t in tokens):
            return tokens
        return self._best(log_probs, self._sought)

    def _best(self, log_probs: NDArray[np.float32], grammar: Grammar | None = None) -> list[SpokenWord]:
        recognizer, model = self._recognizer, self._language_model
        return beam_search(
            log_probs, recognizer.info.labels,
            grammar=grammar, language_model=model, weight=self._weight, time_s=recognizer.time_s,
        )  # fmt: skip

    def _placed(self, tokens: list[SpokenWord], utterance: Utterance) -> list[SpokenWord]:
        """The tokens with their bounds; the first and last are widened to the bounds of the sound."""
        starts = [round(token.start_s * SAMPLE_RATE_HZ) for token in tokens]
        ends = [round(token.end_s * SAMPLE_RATE_HZ) for token in tokens]
        first, last = sound_bounds(utterance)
        starts[0], ends[-1] = min(starts[0], first), max(ends[-1], last)
        return [spoken(utterance, t.word, a, b, t.confidence) for t, a, b in zip(tokens, starts, ends, strict=True)]

    def _objection(self, tokens: list[SpokenWord], utterance: Utterance) -> Reason | None:
        words = [token.word for token in tokens]
        if UNKNOWN in words:
            return Reason.ANOTHER_WORD
        if not set(words) <= set(self._thresholds):
            return Reason.NOT_ASKED_FOR
        if any(token.confidence < self._thresholds[token.word] for token in tokens):
            return Reason.UNSURE
        return None if self._follows(words, utterance) else Reason.NOT_IN_GRAMMAR

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


def spoken(utterance: Utterance, word: str, start: int, end: int, confidence: float) -> SpokenWord:
    """A word from sample `start` to `end` of an utterance."""
    begin = utterance.begin
    return SpokenWord(word, (begin + start) / SAMPLE_RATE_HZ, (begin + end) / SAMPLE_RATE_HZ, confidence)


def make_reader(
    recognizer: Recognizer,
    thresholds: Mapping[str, float],
    config: ListenerConfig,
    grammar: Grammar | None = None,
    language_model: NGram | None = None,
    wake: str | None = None,
) -> Reader:
    """The reader for a bundle and a stream; the arguments are those of the readers.

    Raises:
        ConfigError: a grammar or a language model for a bundle of single words; see `SequenceReader`.
    """
    if recognizer.info.has_steps:
        return SequenceReader(recognizer, thresholds, config, grammar, language_model)
    for given, what in ((grammar, "grammar"), (language_model, "language model")):
        if given:
            raise ConfigError(f"a {what} needs a bundle that recognises sequences, such as --model connected")
    return WordReader(recognizer, thresholds, config, wake)


class Decision:
    """Accepts or rejects utterances; commands right after talk are rejected.

    Args:
        reader: reads the utterances.
        config: the settings.
        wake: word that must precede commands; it may be the first word of the same utterance.  None: no wake word.
    """

    TALK = (Reason.TOO_LONG, Reason.ANOTHER_WORD)
    """Reasons for which talk is rejected."""
    TALK_S = 0.7
    """Rejected speech longer than this is talk; a command mistaken for another word is usually shorter."""

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
        """Whether a command that begins at `now`, in samples since the stream began, would be accepted."""
        return self._wake is None or now < self._awake_until

    def decide(self, utterance: Utterance, fed: int) -> Examined:
        """Read one utterance.

        Args:
            utterance: if it is longer than the reader's maximum, it is rejected without being read.
            fed: samples of the stream so far; the padded last hop of a stream may extend beyond them.
        """
        read = too_long(utterance) if utterance.is_long else self._reader.read(utterance)
        reason = read.reason or self._objection(utterance, read)
        may_hold_both = reason not in (None, Reason.AFTER_TALK) or read.words[0].word == self._wake
        if may_hold_both and self._wake and isinstance(self._reader, WordReader):
            parts = None if utterance.is_long else self._reader.read_in_two(utterance)
            if parts:
                read, reason = parts, self._objection(utterance, parts)
        if reason and not read.reason:
            self._reader.reset()  # a sentence cannot continue after rejected words
        if read.reason in self.TALK and utterance.end - utterance.start > self.TALK_S * SAMPLE_RATE_HZ:
            self._talk_end = utterance.end
        fed_s = fed / SAMPLE_RATE_HZ
        words = tuple(replace(word, end_s=min(word.end_s, fed_s)) for word in read.words)
        return replace(read, words=words, reason=reason, at_s=min(read.at_s, fed_s))

    def _objection(self, utterance: Utterance, read: Examined) -> Reason | None:
        """Reason to reject accepted words because of their time: after talk, or without a wake word."""
        if utterance.start - max(self._talk_end, utterance.talk_end) < self._after_talk:
            return Reason.AFTER_TALK
        if self._wake and read.words[0].word == self._wake:
            self._awake_until = utterance.end + self._wake_for
        return None if self.is_awake(utterance.start) else Reason.NO_WAKE_WORD
