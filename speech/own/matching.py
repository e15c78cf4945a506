"""How an own word is recognised: a model learnt from a few recordings gives it a posterior."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speech.bundle import SILENCE, UNKNOWN
from speech.errors import AudioError
from speech.own.similarity import Similarity, Vectors, left_out, unit
from speech.own.words import OwnWord, OwnWords
from speech.sound.files import Block

Embed = Callable[[Block], Vectors]
"""An utterance (time,) at 16 kHz -> its embedding (embedding,)."""

BUDGET = 0.5
"""False alarms per hour of speech, with commands right after talk rejected, that a word may have."""
LEAST_SHARE = 0.35
"""Part of its recordings' mean score that a word needs at least, so that its score decides where speech does not."""
KNOWN_WEIGHT = 0.25
"""Share of the log-odds for a word of the bundle that is subtracted from the log-odds of an own word."""


@dataclass(frozen=True, eq=False)
class WordModel:
    """An own word, recognised by the cosine to the mean of its recordings."""

    vectors: Vectors
    """(recordings, axes) unit vectors of its recordings, see `speech.own.similarity`."""
    place: Vectors
    """(axes,) their mean as a unit vector."""
    refused: Vectors
    """(counter-examples, axes) unit vectors of what must not be taken for it."""
    least: float
    """Score from which it is accepted by default."""

    def margins(self, similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
        """How far scores are above the least one: (batch, axes) -> (batch,).

        What is as much like a counter-example as like the word is at most at 0.
        """
        above = similarity.scores(np.concatenate([self.place[None], self.refused]), vectors) - self.least
        margins: NDArray[np.float32] = above[:, 0] - np.maximum(0, above[:, 1:].max(1, initial=0))
        return margins


def fit(similarity: Similarity, vectors: Vectors, refused: Vectors | None = None) -> WordModel:
    """Learn a word.

    Its threshold is the score that background speech exceeds `BUDGET` times an hour, or a share of its recordings'.

    Args:
        vectors: (recordings, axes) unit vectors.
        refused: (counter-examples, axes) unit vectors.
    """
    place = unit(vectors.mean(0))
    n_alarms = round(BUDGET / max(similarity.expected.alone, 0.01) * similarity.hours)
    scores = np.sort(similarity.background_scores(place))[::-1]
    least = float(scores[min(n_alarms, len(scores) - 1)])
    if len(vectors) > 1:
        least = max(least, LEAST_SHARE * float(left_out(similarity, vectors).mean()))
    return WordModel(vectors, place, vectors[:0] if refused is None else refused, least)


def learn(
    own: OwnWords, similarity: Similarity, embed: Embed, earlier: Mapping[OwnWord, WordModel]
) -> dict[OwnWord, WordModel]:
    """Learn each word from its recordings; a word whose recordings can't be read is left out, with a notice.

    Args:
        earlier: what was learnt before; words that have not changed since are not learnt again.
    """

    def vectors_of(waveforms: Sequence[Block]) -> Vectors:
        if not waveforms:
            return np.zeros((0, similarity.projection.shape[1]), np.float32)
        return similarity.project(np.stack([embed(waveform) for waveform in waveforms]))

    models = {}
    for word in list(own.values()):
        try:
            models[word] = earlier.get(word) or fit(
                similarity, vectors_of(word.utterances()), vectors_of(word.counterexamples())
            )
        except AudioError as error:
            own.notices.append(f"own word {word.name!r} is left out: {error}; teach it again")
            del own[word.name]
    return models


def with_own_words(
    posteriors: Mapping[str, float], margins: Mapping[str, float], thresholds: Mapping[str, float]
) -> dict[str, float]:
    """The posteriors of a bundle's labels and of own words; they sum to one.

    The own words compete with one another and with everything else.  The labels share the probability of everything
    else in proportion to `posteriors`.  If the bundle is confident of one of its words, own words need a higher score.
    A word of the bundle that was taught too gains what its recordings give; it never loses by them.

    Args:
        posteriors: posterior of each label of the bundle.
        margins: of each own word, see `WordModel.margins`; one standard deviation is 1 in the log-odds.
        thresholds: posterior of each own word at a margin of 0, if the bundle is not confident.
    """
    other = sum(value for label, value in posteriors.items() if label in (UNKNOWN, SILENCE, *margins))
    against = KNOWN_WEIGHT * max(0.0, log_odds(1 - other))
    odds = {name: margin + log_odds(thresholds[name]) - against for name, margin in margins.items()}
    most = max([0.0, *odds.values()])
    weights = {name: float(np.exp(value - most)) for name, value in odds.items()}
    rest = float(np.exp(-most))
    total = rest + sum(weights.values())
    together = {label: value * rest / total for label, value in posteriors.items()}
    return together | {name: together.get(name, 0.0) + weight / total for name, weight in weights.items()}


def log_odds(probability: float) -> float:
    """Logarithm of the odds of a probability, 0..1; finite at both ends."""
    return float(np.log((probability + 1e-6) / (1 - probability + 1e-6)))
