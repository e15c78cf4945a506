"""From a few recordings to a posterior: how an own word is recognised, and how well that will go.

A word's recordings lie around a place of its own, in a space in which every word scatters alike; running speech lies
elsewhere.  The log-likelihood ratio of the two, fitted to the background of the bundle, gives the posterior.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.activity import SAMPLE_RATE_HZ
from speech.audio import Block, resample
from speech.similarity import Similarity, Vectors

Embed = Callable[[Block], Vectors]
"""An utterance (time,) at 16 kHz -> its embedding (embedding,)."""


def log_ratio(similarity: Similarity, place: Vectors, n: int, vectors: Vectors) -> NDArray[np.float32]:
    """How much more likely vectors are another recording of a word than one of any word.

    Args:
        similarity: words lie normally around 0 with `between`, recordings of one around its place with 1.
        place: (axes,) mean of the word's recordings.
        n: how many these are; with fewer its true place is less certain.
        vectors: (batch, axes)
    Returns:
        (batch,) natural logarithm of the likelihood ratio.
    Source: Ioffe 2006, Probabilistic Linear Discriminant Analysis, with the covariances diagonalised at once.
    """
    between = similarity.between
    expected = n * between / (n * between + 1) * place
    variance = 1 + between / (n * between + 1)
    same = np.square(vectors - expected) / variance + np.log(variance)
    other = np.square(vectors) / (1 + between) + np.log(1 + between)
    ratio: NDArray[np.float32] = 0.5 * (other - same).sum(-1)
    return ratio


N_DRAWN = 400
"""Recordings of a word that are drawn to tell what to expect."""
FASTER_SLOWER_HZ = (17600, 14545)
"""Rates that a copy is taken for: 10 % faster and slower."""
SNR_DB = (20.0, 10.0)
"""Of the copies in noise."""
PEAK_TO_RMS = 5.0
"""Of a spoken word: 14 dB."""
HUM = 401
"""Samples over which the noise's mean is taken away: it has nothing below about 40 Hz."""
NEWTON_STEPS = 25
STIFFNESS = 0.01
"""How strongly the slope is drawn towards `SLOPE`."""
PRIOR = -2.0
"""Log-odds that an utterance is a given own word, before it is looked at: raises what it takes to be sure."""
SLOPE = 0.15
"""Weight that the fitted slope of the log-odds is drawn towards, when there are few recordings."""


@dataclass(frozen=True, eq=False)
class WordModel:
    """How an own word is recognised: the log-odds are `scale` times the log-likelihood ratio, plus `offset`."""

    place: Vectors
    """(axes,) mean of its recordings, see `speech.similarity`."""
    n: int
    """How many these are."""
    scale: float
    offset: float

    def log_odds(self, similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
        """Of the word against everything else, for each of `vectors` (batch, axes)."""
        odds: NDArray[np.float32] = self.scale * log_ratio(similarity, self.place, self.n, vectors) + self.offset
        return odds

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"place": [round(float(x), 4) for x in self.place]}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "WordModel":
        """Raises KeyError, TypeError or ValueError when it is damaged."""
        place = np.array(kept["place"], np.float32)
        model = cls(place, int(kept["n"]), float(kept["scale"]), float(kept["offset"]))
        if place.ndim != 1 or model.n < 1 or not np.isfinite([*place, model.scale, model.offset]).all():
            raise ValueError("a model of a word with values out of range")
        return model


def copies(waveform: Block, rng: np.random.Generator) -> list[Block]:
    """The same recording (time,) said faster, slower, in noise, and in louder noise."""
    faster, slower = (resample(waveform, rate, SAMPLE_RATE_HZ) for rate in FASTER_SLOWER_HZ)
    noise = rng.standard_normal(len(waveform)).cumsum().astype(np.float32)  # falls by 6 dB an octave
    noise -= np.convolve(noise, np.full(HUM, 1 / HUM, np.float32), "same")
    noise *= np.sqrt(np.square(waveform).max(initial=0.0)) / PEAK_TO_RMS / (np.sqrt(np.square(noise).mean()) + 1e-9)
    return [faster, slower, *(waveform + noise * np.float32(10 ** (-snr_db / 20)) for snr_db in SNR_DB)]


def fit(similarity: Similarity, embed: Embed, utterances: Sequence[Block]) -> WordModel:
    """Learn a word from its recordings, each (time,) at 16 kHz as the endpointer cut it."""
    rng = np.random.default_rng(0)
    clean = similarity.project(np.stack([embed(waveform) for waveform in utterances]))
    changed = [np.stack([embed(copy) for copy in copies(waveform, rng)]) for waveform in utterances]
    return fit_vectors(similarity, clean, np.stack([similarity.project(some) for some in changed]))


def fit_vectors(similarity: Similarity, clean: Vectors, changed: Vectors) -> WordModel:
    """Learn a word from the vectors of its recordings.

    Each recording and its copies are scored by the others, and all of them against the background.

    Args:
        clean: (recordings, axes)
        changed: (recordings, copies, axes)
    """
    n = len(clean)
    everything = np.concatenate([clean[:, None], changed], axis=1)  # (recordings, 1 + copies, axes)
    places = everything.mean(1)  # (recordings, axes)
    place = places.mean(0)
    right = [
        log_ratio(similarity, (n * place - places[i]) / max(1, n - 1) if n > 1 else place, max(1, n - 1), everything[i])
        for i in range(n)
    ]
    wrong = log_ratio(similarity, place, n, similarity.background)
    scale, offset = logistic(np.concatenate(right), wrong)
    return WordModel(place, n, scale, offset + PRIOR)


def logistic(right: NDArray[np.float32], wrong: NDArray[np.float32]) -> tuple[float, float]:
    """Slope and offset of the log-odds over a score; the two classes count alike, however many there are of each.

    Source: Platt 1999, Probabilistic outputs for support vector machines; the targets are drawn in by one example, so
        that scores that do not overlap give no endless slope.  By Newton's method.
    """
    scores = np.concatenate([right, wrong]).astype(np.float64)
    targets = np.r_[np.full(len(right), (len(right) + 1) / (len(right) + 2)), np.full(len(wrong), 1 / (len(wrong) + 2))]
    weights = np.r_[np.full(len(right), 1 / len(right)), np.full(len(wrong), 1 / len(wrong))]
    inputs = np.stack([scores, np.ones_like(scores)], 1)

    def loss(x: NDArray[np.float64]) -> float:
        odds = inputs @ x
        return float(weights @ (np.logaddexp(0, odds) - targets * odds) + STIFFNESS / 2 * (x[0] - SLOPE) ** 2)

    solution = np.array([SLOPE, -SLOPE * float(np.median(scores))])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(inputs @ solution, -30, 30)))
        gradient = inputs.T @ (weights * (p - targets)) + np.array([STIFFNESS * (solution[0] - SLOPE), 0])
        curvature = (inputs * (weights * p * (1 - p))[:, None]).T @ inputs + np.diag([STIFFNESS, 1e-6])
        step = np.linalg.solve(curvature, gradient)
        while loss(solution - step) > loss(solution) and np.abs(step).max() > 1e-9:
            step = step / 2
        solution = solution - step
    return float(solution[0]), float(solution[1])


def with_own_words(
    posteriors: Mapping[str, float], models: Mapping[str, WordModel], similarity: Similarity, vector: Vectors
) -> dict[str, float]:
    """The posteriors of a bundle's labels and of own words; they sum to one.

    The own words compete with one another and with everything else, whose share the labels divide as before.

    Args:
        posteriors: of the bundle's labels.
        models: of the own words.
        vector: (axes,) of the utterance.
    """
    odds = {name: float(model.log_odds(similarity, vector[None])[0]) for name, model in models.items()}
    most = max([0.0, *odds.values()])
    weights = {name: np.exp(value - most) for name, value in odds.items()}
    total = np.exp(-most) + sum(weights.values())
    together = {label: float(value * np.exp(-most) / total) for label, value in posteriors.items()}
    return together | {name: together.get(name, 0.0) + float(weight / total) for name, weight in weights.items()}


def expected_misses(similarity: Similarity, vectors: Vectors, model: WordModel, logit: float) -> float:
    """Share of further recordings whose log-odds stay below `logit`, drawn around where the known ones lie.

    Args:
        vectors: (recordings, axes) that the word was learnt from.
        logit: log-odds from which the word counts.
    """
    n, between = len(vectors), similarity.between
    expected, variance = n * between / (n * between + 1) * model.place, 1 + between / (n * between + 1)
    scatter = np.random.default_rng(0).standard_normal((N_DRAWN, len(expected))).astype(np.float32)
    drawn = expected + np.sqrt(variance) * scatter
    return float((model.log_odds(similarity, drawn) < logit).mean())
