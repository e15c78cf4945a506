"""Scores -> words."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Posteriors = NDArray[np.float32]


def most_confident(posteriors: Posteriors, is_word: NDArray[np.bool_]) -> Posteriors:
    """The row of `posteriors` (windows, labels) in which a word stands out most: (labels,)."""
    row: Posteriors = posteriors[posteriors[:, is_word].max(1).argmax()]
    return row


@dataclass(frozen=True)
class Decision:
    """A word that the posteriors call for."""

    word: str
    confidence: float
    """Mean posterior over the smoothed windows, 0..1."""


class WordDecoder:
    """Posteriors of successive windows -> a word once they agree on it.

    Args:
        labels: names of the scores.
        words: the labels that may be reported; the others still compete, so that they are not taken for these.
        threshold: mean posterior from which a word counts, 0..1.
        n_windows: windows that the mean runs over.
    """

    def __init__(self, labels: Sequence[str], words: Sequence[str], threshold: float, n_windows: int) -> None:
        self._labels, self._words, self._threshold = tuple(labels), frozenset(words), threshold
        self._recent: deque[Posteriors] = deque(maxlen=n_windows)

    def push(self, posteriors: Posteriors) -> Decision | None:
        """Take the posteriors (labels,) of the next window; a decision when the mean is sure of a word."""
        self._recent.append(posteriors)
        if len(self._recent) < (self._recent.maxlen or 1):
            return None
        mean = np.mean(self._recent, axis=0)
        best = int(mean.argmax())
        if mean[best] < self._threshold or self._labels[best] not in self._words:
            return None
        return Decision(self._labels[best], float(mean[best]))

    def reset(self) -> None:
        """Forget the windows so far, as after a decision."""
        self._recent.clear()
