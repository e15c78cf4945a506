"""Scores -> words."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Posteriors = NDArray[np.float32]
NEAR = 0.2
"""How far below its threshold a word is a near miss."""


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
    is_sure: bool
    """Whether the confidence reaches the word's threshold; else it comes within `NEAR` of it."""


class WordDecoder:
    """Posteriors of successive windows -> a word once they agree on it.

    Args:
        labels: names of the scores.
        thresholds: the words that may be reported, and the mean posterior (0..1) from which each counts; the other
            labels still compete, so that they are not taken for these.
        n_windows: windows that the mean runs over.
    """

    def __init__(self, labels: Sequence[str], thresholds: Mapping[str, float], n_windows: int) -> None:
        self._labels, self._thresholds = tuple(labels), dict(thresholds)
        self._recent: deque[Posteriors] = deque(maxlen=n_windows)

    def push(self, posteriors: Posteriors) -> Decision | None:
        """Take the posteriors (labels,) of the next window; a decision when the mean calls for a word, or nearly."""
        self._recent.append(posteriors)
        if len(self._recent) < (self._recent.maxlen or 1):
            return None
        mean = np.mean(self._recent, axis=0)
        best = int(mean.argmax())
        word, confidence = self._labels[best], float(mean[best])
        threshold = self._thresholds.get(word, np.inf)
        return Decision(word, confidence, confidence >= threshold) if confidence >= threshold - NEAR else None

    def reset(self) -> None:
        """Forget the windows so far, as after a decision."""
        self._recent.clear()
