"""Scores -> words."""

import numpy as np
from numpy.typing import NDArray


def most_confident(posteriors: NDArray[np.float32], is_word: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The row of `posteriors` (windows, labels) in which a word stands out most: (labels,)."""
    row: NDArray[np.float32] = posteriors[posteriors[:, is_word].max(1).argmax()]
    return row
