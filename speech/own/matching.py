"""How an own word is recognised: a model learnt from a few recordings gives it a posterior."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.bundle import SILENCE, UNKNOWN
from speech.own.similarity import Similarity, Vectors, unit
from speech.sound.files import Block

Embed = Callable[[Block], Vectors]
"""An utterance (time,) at 16 kHz -> its embedding (embedding,)."""

SLOPE = 1.0
"""Log-odds of a word per standard deviation of its score, see `Similarity.scores`."""
EVEN = 2.5
"""Score at which an utterance is the word with probability 0.5."""
KNOWN_WEIGHT = 0.5
"""Share of the log-odds for a word of the bundle that is subtracted from the log-odds of an own word."""


def odds_of(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of a word (see `Similarity.scores`) -> its log-odds."""
    odds: NDArray[np.float32] = SLOPE * (scores - EVEN)
    return odds


@dataclass(frozen=True, eq=False)
class WordModel:
    """An own word, recognised by the cosine to the mean of its recordings."""

    place: Vectors
    """(axes,) mean of its recordings as a unit vector, see `speech.own.similarity`."""

    def log_odds(self, similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
        """Log-odds of the word against everything else: (batch, axes) -> (batch,)."""
        return odds_of(similarity.scores(self.place, vectors))

    def as_dict(self) -> dict[str, Any]:
        return {"place": [round(float(x), 5) for x in self.place]}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "WordModel":
        """Raises KeyError, TypeError or ValueError when it is damaged."""
        place = np.array(kept["place"], np.float32)
        if place.ndim != 1 or not abs(float(np.linalg.norm(place)) - 1) < 0.01:
            raise ValueError("the place of a word is not a unit vector")
        return cls(place)


def fit(similarity: Similarity, embed: Embed, utterances: Sequence[Block]) -> WordModel:
    """Learn a word from its recordings, each (time,) at 16 kHz as the endpointer cut it."""
    return fit_vectors(similarity.project(np.stack([embed(waveform) for waveform in utterances])))


def fit_vectors(vectors: Vectors) -> WordModel:
    """Learn a word from the vectors (recordings, axes) of its recordings."""
    return WordModel(unit(vectors.mean(0)))


def left_out(similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
    """Log-odds of each recording under a model of the others: (recordings, axes), at least 2 -> (recordings,)."""
    models = [fit_vectors(np.delete(vectors, n, axis=0)) for n in range(len(vectors))]
    return np.array([m.log_odds(similarity, v[None])[0] for m, v in zip(models, vectors, strict=True)], np.float32)


def with_own_words(
    posteriors: Mapping[str, float], models: Mapping[str, WordModel], similarity: Similarity, vector: Vectors
) -> dict[str, float]:
    """The posteriors of a bundle's labels and of own words; they sum to one.

    The own words compete with one another and with everything else.  The labels share the probability of everything
    else in proportion to `posteriors`.  If the bundle is confident of one of its words, own words need a higher score.

    Args:
        posteriors: posterior of each label of the bundle.
        models: model of each own word.
        similarity: the bundle's.
        vector: (axes,) unit vector of the utterance.
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
