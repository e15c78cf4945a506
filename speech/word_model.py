"""From a few recordings to a posterior: how an own word is recognised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.audio import Block
from speech.bundle import SILENCE, UNKNOWN
from speech.similarity import Similarity, Vectors, unit

Embed = Callable[[Block], Vectors]
"""An utterance (time,) at 16 kHz -> its embedding (embedding,)."""

SLOPE = 1.0
"""Log-odds of a word for one standard deviation of its score, see `Similarity.scores`."""
EVEN = 2.5
"""Score at which an utterance is as likely the word as not."""
KNOWN_WEIGHT = 0.5
"""What counts against it of the log-odds that the utterance is a word of the bundle."""


def odds_of(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-odds of a word for scores, see `Similarity.scores`."""
    odds: NDArray[np.float32] = SLOPE * (scores - EVEN)
    return odds


@dataclass(frozen=True, eq=False)
class WordModel:
    """How an own word is recognised: by the cosine to the mean of its recordings."""

    place: Vectors
    """(axes,) a unit vector, see `speech.similarity`."""

    def log_odds(self, similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
        """Of the word against everything else, for each of `vectors` (batch, axes)."""
        return odds_of(similarity.scores(self.place, vectors))

    def as_dict(self) -> dict[str, Any]:
        return {"place": [round(float(x), 5) for x in self.place]}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "WordModel":
        """Raises KeyError, TypeError or ValueError when it is damaged."""
        place = np.array(kept["place"], np.float32)
        if place.ndim != 1 or not abs(float(np.linalg.norm(place)) - 1) < 0.01:
            raise ValueError("the place of a word is no unit vector")
        return cls(place)


def fit(similarity: Similarity, embed: Embed, utterances: Sequence[Block]) -> WordModel:
    """Learn a word from its recordings, each (time,) at 16 kHz as the endpointer cut it."""
    return fit_vectors(similarity.project(np.stack([embed(waveform) for waveform in utterances])))


def fit_vectors(vectors: Vectors) -> WordModel:
    """Learn a word from the vectors (recordings, axes) of its recordings."""
    return WordModel(unit(vectors.mean(0)))


def left_out(similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
    """The log-odds of each recording by a model of the others: (recordings,), from two recordings on."""
    models = [fit_vectors(np.delete(vectors, n, axis=0)) for n in range(len(vectors))]
    return np.array([m.log_odds(similarity, v[None])[0] for m, v in zip(models, vectors, strict=True)], np.float32)


def with_own_words(
    posteriors: Mapping[str, float], models: Mapping[str, WordModel], similarity: Similarity, vector: Vectors
) -> dict[str, float]:
    """The posteriors of a bundle's labels and of own words; they sum to one.

    The own words compete with one another and with everything else, whose share the labels divide as before.  When the
    bundle is sure of a word of its own, they need more.

    Args:
        posteriors: of the bundle's labels.
        models: of the own words.
        vector: (axes,) of the utterance.
    """
    other = sum(value for label, value in posteriors.items() if label in (UNKNOWN, SILENCE, *models))
    against = KNOWN_WEIGHT * max(0.0, float(np.log((1 - other + 1e-6) / (other + 1e-6))))
    odds = {name: float(model.log_odds(similarity, vector[None])[0]) - against for name, model in models.items()}
    most = max([0.0, *odds.values()])
    weights = {name: float(np.exp(value - most)) for name, value in odds.items()}
    rest = float(np.exp(-most))
    total = rest + sum(weights.values())
    together = {label: value * rest / total for label, value in posteriors.items()}
    return together | {name: together.get(name, 0.0) + weight / total for name, weight in weights.items()}
