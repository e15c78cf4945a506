"""Posteriors of a CTC head -> tokens with times and confidences.

Throughout, `log_probs` is (frames, tokens): natural logarithms of posteriors, one column for each of `labels`:
the words, FILLER for other speech, and BLANK.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, repeat, starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.bundle import BLANK, UNKNOWN
from speech.errors import ConfigError
from speech.grammar import Grammar, NGram
from speech.results import SpokenWord

FILLER = UNKNOWN
"""The token for other speech."""

_UNLIKELY = -12.0  # log posterior below which a token does not begin in a frame
_QUIET = math.log(0.999)  # log posterior of the blank above which no token begins in a frame
_FLOOR = -100.0  # replaces log(0), so that differences stay finite

LogProbs = NDArray[np.float64]
Scores = tuple[float, float]
"""Log probability of a prefix over the paths that end in blank, and over those that end in its last token."""


def log_of(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithm of posteriors, at most 0; finite for a posterior of 0."""
    logs: NDArray[np.float32] = np.log(scores + np.float32(1e-12))
    return np.minimum(logs, 0)


def greedy(log_probs: NDArray[np.floating[Any]], labels: Sequence[str]) -> list[SpokenWord]:
    """The best token of each frame, with repetitions merged and blanks removed.

    Args:
        log_probs: (frames, tokens).
        labels: names of the tokens.
    Returns:
        words and fillers in order of time; their times are frames.
    Raises:
        ConfigError: NaN, positive values, or a shape that does not fit the labels.
    Source: Graves et al. (2006), "Connectionist temporal classification", section 3.2, best path decoding.
    """
    log_probs, blank = _checked(log_probs, len(labels)), _blank(labels)
    best = log_probs.argmax(1)
    changes = np.flatnonzero(np.diff(best, prepend=-1, append=-1)).tolist()
    runs = [(start, end) for start, end in pairwise(changes) if best[start] != blank]
    return _placed(log_probs, labels, [int(best[start]) for start, _ in runs], runs)


def beam_search(
    log_probs: NDArray[np.floating[Any]],
    labels: Sequence[str],
    beam: int = 16,
    grammar: Grammar | None = None,
    language_model: NGram | None = None,
    weight: float = 1.0,
    threshold: float = 0.0,
    time_s: Callable[[int], float] = float,
) -> list[SpokenWord]:
    """The most probable token sequence, summed over all its alignments.

    Sequences are ranked by log P(tokens | audio) + weight * log gain(words).  The gain
    is the language model's probability over that of equally likely words: the network's posteriors include equal
    chances already, and without this ratio each word would cost log probability, so that fewer words were found.
    Fillers are tokens like the words, but the grammar and the language model ignore them.

    Args:
        log_probs: (frames, tokens).
        labels: names of the tokens.
        beam: prefixes kept after each frame.
        grammar: the words must form one of its sentences, or be empty; use `Grammar.repeated()` for a stream.
        language_model: must know all words among the labels.  It changes the confidence too.  The end of a sequence
            is not scored: a stream has none.
        weight: weight of the language model, at least 0.
        threshold: confidence below which a word is dropped, 0..1.  With a grammar, words that no longer fit a
            sentence are dropped too.  A grammar alone would replace a forbidden word with the nearest allowed one;
            the confidence compares a word with all words.
        time_s: the start of a frame in seconds; by default times are frames.
    Returns:
        words and fillers in order of time; `end_s` is the start of the frame after the last.
    Raises:
        ConfigError: NaN, positive values, a shape that does not fit the labels, or a setting out of range.
    Source: Hannun et al. (2014), "First-pass large vocabulary continuous speech recognition using bi-directional
        recurrent DNNs", algorithm 1.
    """
    log_probs, blank = _checked(log_probs, len(labels)), _blank(labels)
    if beam < 1 or not weight >= 0 or not 0 <= threshold <= 1:
        raise ConfigError(f"expected beam >= 1, weight >= 0, threshold in 0..1; got {beam=}, {weight=}, {threshold=}")
    if grammar and not grammar.words <= set(labels):
        raise ConfigError(f"the grammar uses {', '.join(sorted(grammar.words - set(labels)))}, not among the labels")
    search = _Search(tuple(labels), blank, beam, grammar, language_model, weight)
    tokens = search.best(log_probs)
    runs = align(log_probs, tokens, blank)
    return _confident(_placed(log_probs, labels, tokens, runs, search.priors(tokens), time_s), threshold, grammar)


def align(log_probs: NDArray[np.floating[Any]], tokens: Sequence[int], blank: int) -> list[tuple[int, int]]:
    """The frames that each of `tokens` occupies on the most probable path for this token sequence.

    Args:
        log_probs: (frames, tokens).
        tokens: column of each token, never `blank`.
        blank: column of the blank.
    Returns:
        first frame and the frame after the last, for each token.
    Raises:
        ConfigError: too few frames for the tokens and the blanks between equal neighbours, or a token out of range.
    """
    log_probs = _checked(log_probs)
    n_frames, n_tokens = log_probs.shape
    if blank in tokens or not all(0 <= token < n_tokens for token in (*tokens, blank)):
        raise ConfigError(f"tokens {list(tokens)} must lie in 0..{n_tokens - 1} and not include the blank, {blank}")
    needed = len(tokens) + sum(a == b for a, b in pairwise(tokens))
    if n_frames < needed:
        raise ConfigError(f"{len(tokens)} tokens need at least {needed} frames, but there are {n_frames}")
    if not tokens:
        return []
    states = np.full(2 * len(tokens) + 1, blank)  # a blank before, between and after the tokens
    states[1::2] = tokens
    no_skip = np.where((states[2:] == blank) | (states[2:] == states[:-2]), -np.inf, 0)
    score = np.full(len(states), -np.inf)
    score[0] = 0
    moves = np.full((3, len(states)), -np.inf)  # score when coming from 0, 1 or 2 states before
    came = np.zeros((n_frames, len(states)), np.int8)
    for frame in range(n_frames):
        moves[0], moves[1, 1:] = score, score[:-1]
        moves[2, 2:] = score[:-2] + no_skip
        came[frame] = moves.argmax(0)
        score = moves.max(0) + log_probs[frame, states]
    path = np.empty(n_frames, np.int64)
    state = len(states) - 1 - int(score[-2] > score[-1])
    for frame in reversed(range(n_frames)):
        path[frame] = state
        state -= int(came[frame, state])
    odd = 2 * np.arange(len(tokens)) + 1
    starts, ends = np.searchsorted(path, odd, "left"), np.searchsorted(path, odd, "right")
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def confidences(
    log_probs: NDArray[np.floating[Any]], blank: int, prior: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float64]:
    """For each token, the probability that the frames contain this token once and nothing else.

    The alternatives are each other token alone (other words and the filler) and no token.  Each is weighted by its
    CTC probability over all alignments.  So a word gets 0.5 if it explains the frames as well as the filler does, and
    better than everything else.

    Args:
        log_probs: (frames, tokens), at least one frame.
        blank: column of the blank; in the result this column is the probability of no token.
        prior: (tokens,), added to the log odds of each token against no token, as by a language model.
    Returns:
        (tokens,), sums to one.
    """
    log_probs = _checked(log_probs)
    # A token in frames i..j and blank elsewhere has exp(gain[j] - gain[i - 1]) times the probability of no token.
    gain = np.cumsum(log_probs - log_probs[:, [blank]], axis=0)  # (frames, tokens)
    before = np.logaddexp.accumulate(np.vstack([np.zeros_like(gain[:1]), -gain[:-1]]))
    odds = np.logaddexp.reduce(gain + before) + prior  # (tokens,)
    odds[blank] = 0
    share: NDArray[np.float64] = np.exp(odds - np.logaddexp.reduce(odds))
    return share


def _checked(log_probs: NDArray[np.floating[Any]], n_tokens: int | None = None) -> LogProbs:
    log_probs = np.asarray(log_probs)
    if log_probs.ndim != 2 or n_tokens not in (None, log_probs.shape[1]):
        raise ConfigError(f"log posteriors must be (frames, {n_tokens or 'tokens'}), not {log_probs.shape}")
    if not (log_probs <= 1e-3).all():
        raise ConfigError("log posteriors must be at most 0; they hold NaN, or are logits or probabilities")
    floored: LogProbs = np.maximum(log_probs, _FLOOR, dtype=np.float64)
    return floored


def _blank(labels: Sequence[str]) -> int:
    if BLANK not in labels:
        raise ConfigError(f"labels {list(labels)} of a CTC head must include {BLANK}")
    return list(labels).index(BLANK)


def _placed(
    log_probs: LogProbs,
    labels: Sequence[str],
    tokens: Sequence[int],
    runs: Sequence[tuple[int, int]],
    priors: Iterable[NDArray[np.float64] | float] = repeat(0.0),
    time_s: Callable[[int], float] = float,
) -> list[SpokenWord]:
    """Each token with its confidence; `priors`: one for each token, see `confidences`.

    The confidence covers the token's frames and those around it, up to its neighbours and to the next frame on
    each side whose best token is not the blank: a word that the grammar left out must not lower the confidence of the
    word before it.
    """
    blank = _blank(labels)
    ends, starts = [0, *(end for _, end in runs)], [*(start for start, _ in runs[1:]), len(log_probs)]
    loud = np.array([-1, *np.flatnonzero(log_probs.argmax(1) != blank), len(log_probs)])
    found = []
    for token, (start, end), low, high, prior in zip(tokens, runs, ends, starts, priors, strict=False):
        low = max(low, int(loud[np.searchsorted(loud, start) - 1]) + 1)
        high = min(high, int(loud[np.searchsorted(loud, end)]))
        confidence = float(confidences(log_probs[low:high], blank, prior)[token])
        found.append(SpokenWord(labels[token], time_s(start), time_s(end), confidence))
    return found


def _confident(tokens: list[SpokenWord], threshold: float, grammar: Grammar | None) -> list[SpokenWord]:
    """Drop words below the threshold and, with a grammar, words that then fit no sentence."""
    tokens = [token for token in tokens if token.word == FILLER or token.confidence >= threshold]
    if grammar is None:
        return tokens
    words = [i for i, token in enumerate(tokens) if token.word != FILLER]
    kept = {words[k] for k in grammar.longest_sentence(tokens[i].word for i in words)}
    return [token for i, token in enumerate(tokens) if token.word == FILLER or i in kept]


@dataclass(eq=False, slots=True)
class _Prefix:
    """A token sequence: its last token and the prefix before it."""

    token: int
    parent: "_Prefix | None"
    state: int
    """State of the grammar after its words."""
    history: tuple[str, ...]
    """The last words, for the language model."""
    bonus: float
    """Log score added by the language model."""
    children: dict[int, "_Prefix"] = field(default_factory=dict)
    """Longer prefixes that a beam has kept, by token; looked up here so that no sequence is in the beam twice."""

    def tokens(self) -> list[int]:
        tokens, prefix = [], self
        while prefix.parent:
            tokens.append(prefix.token)
            prefix = prefix.parent
        return tokens[::-1]


@dataclass(frozen=True)
class _Search:
    """Prefix beam search; the arguments are those of `beam_search`."""

    labels: tuple[str, ...]
    blank: int
    beam: int
    grammar: Grammar | None
    language_model: NGram | None
    weight: float

    def best(self, log_probs: LogProbs) -> list[int]:
        """Tokens of the best prefix whose words form a sentence of the grammar or are empty."""
        begun = (log_probs > _UNLIKELY) & (log_probs[:, [self.blank]] < _QUIET)
        begun[:, self.blank] = False
        state = self.grammar.start if self.grammar else 0
        history = self.language_model.start if self.language_model else ()
        beam: dict[_Prefix, Scores] = {_Prefix(self.blank, None, state, history, 0.0): (0.0, -math.inf)}
        for frame, row in zip(log_probs.tolist(), begun, strict=True):
            beam = self._prune(self._advance(beam, frame, np.flatnonzero(row).tolist()))
        return max(filter(self._is_complete, beam), key=lambda prefix: _total(prefix, beam[prefix])).tokens()

    def priors(self, tokens: Sequence[int]) -> Iterable[NDArray[np.float64] | float]:
        """For each of `tokens`, what the language model adds to the log score of each label at its place, (labels,)."""
        if not self.language_model:
            return repeat(0.0)
        history, priors = self.language_model.start, []
        for token in tokens:
            priors.append(np.array([self._gain(history, label) for label in self.labels]))
            if self.labels[token] != FILLER:
                history = (*history, self.labels[token])[1:]
        return priors

    def _gain(self, history: tuple[str, ...], label: str) -> float:
        """What the language model adds to the log score of a label after `history`."""
        if not self.language_model or label in (FILLER, BLANK):
            return 0.0
        return self.weight * self.language_model.log_gain(history, label)

    @cached_property
    def _most_bonus(self) -> float:
        """The largest bonus that a new token can add."""
        return self.weight * self.language_model.most_gain if self.language_model else 0.0

    def _advance(self, beam: dict[_Prefix, Scores], frame: list[float], begun: list[int]) -> dict[_Prefix, Scores]:
        """Every prefix of the beam, unchanged and extended by each token that may begin in this frame."""
        scores = {
            prefix: (_add(*before) + frame[self.blank], before[1] + frame[prefix.token])
            for prefix, before in beam.items()
        }
        if not begun:
            return scores
        # A full beam scores at least this: a new prefix that is worse, even with the largest bonus, would be pruned.
        worst = min(starmap(_total, scores.items())) if len(scores) >= self.beam else -math.inf
        for prefix, before in beam.items():
            both, most = _add(*before), prefix.bonus + self._most_bonus
            for token in begun:
                came = (before[0] if token == prefix.token else both) + frame[token]
                longer = prefix.children.get(token)
                if not longer and came + most > worst:
                    longer = self._longer(prefix, token)
                if longer:
                    in_blank, in_token = scores.get(longer, (-math.inf, -math.inf))
                    scores[longer] = in_blank, _add(in_token, came)
        return scores

    def _longer(self, prefix: _Prefix, token: int) -> _Prefix | None:
        """`prefix` extended by `token`, or None if the grammar forbids it."""
        word, state, history, bonus = self.labels[token], prefix.state, prefix.history, prefix.bonus
        if word != FILLER:
            if self.grammar:
                target = self.grammar.step(state, word)
                if target is None:
                    return None
                state = target
            bonus += self._gain(history, word)
            history = (*history, word)[1:]
        return _Prefix(token, prefix, state, history, bonus)

    def _prune(self, scores: dict[_Prefix, Scores]) -> dict[_Prefix, Scores]:
        """Keep the best prefixes, among them at least one complete one: the audio may end here."""
        totals = {prefix: _total(prefix, score) for prefix, score in scores.items()}
        kept = heapq.nlargest(self.beam, scores, key=totals.__getitem__)
        if not any(map(self._is_complete, kept)):
            kept.append(max(filter(self._is_complete, scores), key=totals.__getitem__))
        for prefix in kept:
            if prefix.parent:
                prefix.parent.children[prefix.token] = prefix
        return {prefix: scores[prefix] for prefix in kept}

    def _is_complete(self, prefix: _Prefix) -> bool:
        return not self.grammar or prefix.state == self.grammar.start or self.grammar.accepts(prefix.state)


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))"""
    if a < b:
        a, b = b, a
    return a + math.log1p(math.exp(b - a)) if b > -math.inf else a


def _total(prefix: _Prefix, score: Scores) -> float:
    return _add(*score) + prefix.bonus
