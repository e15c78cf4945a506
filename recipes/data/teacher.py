"""Posteriors of networks that were trained on more data, as soft targets for recorded words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.clips import Numbers, Reals
from recipes.data.corpus import Recording
from speech.bundle import SILENCE, UNKNOWN
from speech.errors import DataError

LEAST = 0.05
"""If no teacher gives the true word a higher posterior, the recording is doubted: its target is its label alone."""
DOUBTED = 0.5
"""Weight of a doubted recording in the loss."""
NAMES = ("names", "kwt1", "kwt1_labels", "bcres2", "bcres2_labels")

Posteriors = NDArray[np.float32]


@dataclass(frozen=True)
class Teacher:
    """The teachers' posteriors for each recording.

    Attributes:
        posteriors: (recordings + 1, classes), zeros where there are none; the last row belongs to index -1.
        weight: (recordings + 1,) weight of each recording in the loss.
    """

    posteriors: Posteriors
    weight: Posteriors

    def __init__(self, n_classes: int, posteriors: Posteriors | None = None, weight: Posteriors | None = None) -> None:
        object.__setattr__(
            self, "posteriors", np.zeros((1, n_classes), np.float32) if posteriors is None else posteriors
        )
        object.__setattr__(self, "weight", np.ones(1, np.float32) if weight is None else weight)

    def of(self, recordings: Numbers) -> tuple[Posteriors, Posteriors]:
        """Posteriors (recordings, classes) and weights (recordings,) of recordings by index; -1 for no recording."""
        rows = np.where(len(self.weight) > 1, recordings, -1)
        return self.posteriors[rows], self.weight[rows]


def read_teacher(path: Path, recordings: Sequence[Recording], labels: Sequence[str]) -> Teacher:
    """Read the teachers' posteriors over `labels` for the recorded words among `recordings`.

    Args:
        path: archive with `names` ("word/file"), `kwt1` (names, 12), `bcres2` (names, 35) and the labels of both.
    Raises:
        DataError: the file is missing or holds other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, kwt1, kwt1_labels, bcres2, bcres2_labels = (archive[name] for name in NAMES)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no posteriors of teachers ({', '.join(NAMES)}): {error}") from error
    row = {str(name): number for number, name in enumerate(names)}
    found = [
        (index, row[key])
        for index, r in enumerate(recordings)
        if r.source == "words" and (key := f"{r.path.parent.name}/{r.path.name}") in row
    ]
    index, rows = np.array(found, np.int64).reshape(-1, 2).T
    first, second = kwt1[rows].astype(np.float64), bcres2[rows].astype(np.float64)
    labels_of = [str(label) for label in kwt1_labels], [str(label) for label in bcres2_labels]
    mapped = map_posteriors(first, labels_of[0], second, labels_of[1], labels)
    words = [recordings[i].word for i in index]
    doubted = true_posterior(first, labels_of[0], second, labels_of[1], words) <= LEAST
    posteriors = np.zeros((len(recordings) + 1, len(labels)), np.float32)
    weight = np.ones(len(recordings) + 1, np.float32)
    posteriors[index[~doubted]] = mapped[~doubted]
    weight[index[doubted]] = DOUBTED
    return Teacher(len(labels), posteriors, weight)


def map_posteriors(
    kwt1: Reals, kwt1_labels: Sequence[str], bcres2: Reals, bcres2_labels: Sequence[str], labels: Sequence[str]
) -> Reals:
    """Mean of two teachers over `labels`: (clips, 12) and (clips, 35) -> (clips, labels).

    The mean is taken over the classes of the first teacher.  The mean for `_unknown_` is then divided among `_unknown_`
    and the words of `labels` that only the second teacher knows, in proportion to its posteriors.
    """
    commands = [label for label in kwt1_labels if label not in (UNKNOWN, SILENCE)]
    kwt1, bcres2 = kwt1 / kwt1.sum(1, keepdims=True), bcres2 / bcres2.sum(1, keepdims=True)
    mapped = np.zeros((len(kwt1), len(labels)))
    for command in commands:
        both = kwt1[:, kwt1_labels.index(command)] + bcres2[:, bcres2_labels.index(command)]
        mapped[:, labels.index(command)] = both / 2
    mapped[:, labels.index(SILENCE)] = kwt1[:, kwt1_labels.index(SILENCE)] / 2
    others = np.array([label not in commands for label in bcres2_labels])
    outside = bcres2[:, others].sum(1)  # the second teacher's posterior of all other words
    unknown = (kwt1[:, kwt1_labels.index(UNKNOWN)] + outside) / 2
    for column, word in enumerate(bcres2_labels):
        if word not in commands:
            target = labels.index(word if word in labels else UNKNOWN)
            mapped[:, target] += unknown * bcres2[:, column] / np.maximum(outside, 1e-9)
    mapped[:, labels.index(UNKNOWN)] += np.maximum(1 - mapped.sum(1), 0)  # where the second teacher finds no other word
    return mapped / mapped.sum(1, keepdims=True)


def true_posterior(
    kwt1: Reals, kwt1_labels: Sequence[str], bcres2: Reals, bcres2_labels: Sequence[str], words: Sequence[str]
) -> Reals:
    """The higher of the two teachers' posteriors for the word that is said: (clips,)."""
    rows = np.arange(len(words))
    first = np.array([kwt1_labels.index(w if w in kwt1_labels else UNKNOWN) for w in words], np.int64)
    known = np.array([w in bcres2_labels for w in words], bool)
    second = np.array([bcres2_labels.index(w) if w in bcres2_labels else 0 for w in words], np.int64)
    return np.maximum(kwt1[rows, first], np.where(known, bcres2[rows, second], 0))
