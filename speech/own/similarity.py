"""How alike two embeddings of a bundle are: a projection that groups recordings of a word, and background speech.

`recipes.similarity` computes it and stores it in the bundle's metadata.
"""

import base64
import binascii
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech.errors import BundleError

Vectors = NDArray[np.float32]

SHRINKAGE = 0.3
"""Weight of the mean variance in the variances within words, as most words have few recordings."""
N_NEAREST = 100
"""Nearest utterances of the background that normalise a score."""
HALVED = ("mean", "projection")
"""Fields stored in half precision."""
BYTES = ("background", "places")
"""Fields stored as whole multiples of 1/127 of their largest absolute value."""
METADATA = "speech.similarity"
"""Its key in a bundle's metadata."""
N_TAUGHT = 5
"""Recordings of the lessons from which `Expectation` is estimated."""
ODD_ONES = 0.01
"""Share of good recordings whose score is below twice `Expectation.unlike`: lessons elsewhere vary more than these."""


@dataclass(frozen=True)
class Expectation:
    """How scores of further recordings of a word lie to those of the lesson, each scored by the others.

    The last four are in units of a score, see `Similarity.scores`.
    """

    alone: float
    """Share of the background that does not follow talk, 0..1."""
    unlike: float
    """Score below which a recording of a lesson is not the word of the others."""
    scatter: float
    """Standard deviation of a word's recordings."""
    drift: float
    """Standard deviation, over words, of the mean of further recordings from the mean of the lesson."""
    others: float
    """Mean of other speakers' recordings minus the mean of a lesson by one speaker."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Maps embeddings to unit vectors whose cosine measures how alike two utterances are."""

    mean: Vectors
    """(embedding,) mean of the background."""
    projection: Vectors
    """(embedding, axes) makes the scatter of a word's recordings about equal along each axis."""
    background: Vectors
    """(utterances, axes) running speech, unit vectors."""
    words: tuple[str, ...]
    """Common words, including those of the bundle."""
    places: Vectors
    """(words, axes) mean of each word's recordings after the projection; not unit vectors."""
    hours: float
    """Hours of running speech that the background was cut from."""
    expected: Expectation

    def __post_init__(self) -> None:
        n, axes = self.projection.shape
        shapes = (self.mean.shape, self.background.shape[1:], self.places.shape)
        if shapes != ((n,), (axes,), (len(self.words), axes)) or len(self.background) < N_NEAREST:
            raise BundleError(f"{METADATA} in the bundle does not fit together; make it again with recipes.similarity")

    def project(self, embeddings: Vectors) -> Vectors:
        """(batch, embedding) -> (batch, axes), unit vectors."""
        return unit(((embeddings - self.mean) @ self.projection).astype(np.float32))

    def scores(self, places: Vectors, vectors: Vectors) -> NDArray[np.float32]:
        """How much more alike utterances are to words than to the nearest background utterances.

        A score is the cosine to the word, in standard deviations above the mean cosine to the `N_NEAREST` nearest
        background utterances.

        Args:
            places: (words, axes) unit vectors of the words.
            vectors: (batch, axes) unit vectors of the utterances.
        Returns:
            (batch, words).
        Source: Auckenthaler et al. 2000, Score Normalization for Text-Independent Speaker Verification Systems
            (T-norm); Matejka et al. 2017, Analysis of Score Normalization, for the use of the nearest only.
        """
        mean, deviation = _nearest(vectors @ self.background.T)
        scores: NDArray[np.float32] = (vectors @ places.T - mean[:, None]) / deviation[:, None]
        return scores

    def background_scores(self, place: Vectors) -> NDArray[np.float32]:
        """(utterances,) the same for the background utterances and one word, each normalised by the others."""
        mean, deviation = self._among_others
        scores: NDArray[np.float32] = (self.background @ place - mean) / deviation
        return scores

    @cached_property
    def _among_others(self) -> tuple[Vectors, Vectors]:
        cosines = self.background @ self.background.T
        np.fill_diagonal(cosines, -1)
        return _nearest(cosines)

    def as_text(self) -> str:
        """Text for the bundle's metadata: an NPZ file in base64."""
        arrays: dict[str, NDArray[np.generic]] = {"words": np.array(self.words, np.str_)}
        arrays |= {name: getattr(self, name).astype(np.float16) for name in HALVED}
        for name in BYTES:
            values = getattr(self, name)
            step = float(np.abs(values).max()) / 127
            arrays |= {name: np.rint(values / step).astype(np.int8), f"{name}_step": np.array(step)}
        arrays |= {name: np.array(value) for name, value in vars(self.expected).items()}
        arrays["hours"] = np.array(self.hours)
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        return base64.b64encode(packed.getvalue()).decode()

    @classmethod
    def from_text(cls, text: str) -> "Similarity":
        """Read what `as_text` wrote.  Raises BundleError when it is damaged."""
        try:
            with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as arrays:
                values = {name: arrays[name].astype(np.float32) for name in HALVED}
                values |= {name: (arrays[name] * arrays[f"{name}_step"]).astype(np.float32) for name in BYTES}
                words, hours = tuple(map(str, arrays["words"])), float(arrays["hours"])
                expected = Expectation(*(float(arrays[f.name]) for f in fields(Expectation)))
        except (binascii.Error, zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
            raise BundleError(
                f"damaged bundle: {METADATA} can't be read: {error}; make it again with recipes.similarity"
            ) from error
        return cls(words=words, hours=hours, expected=expected, **values)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Similarity | None":
        """Read it from a bundle's metadata; None if there is none.  Raises BundleError when it is damaged."""
        return cls.from_text(metadata[METADATA]) if METADATA in metadata else None


def _nearest(cosines: Vectors) -> tuple[Vectors, Vectors]:
    """Mean and standard deviation (batch,) of the `N_NEAREST` largest of (batch, utterances)."""
    nearest = np.partition(cosines, -N_NEAREST, axis=1)[:, -N_NEAREST:]
    return nearest.mean(1), nearest.std(1) + 1e-6


def unit(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Scale vectors (..., axes) to length 1."""
    scaled = vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)
    return scaled.astype(np.float32)


def left_out(similarity: Similarity, vectors: Vectors) -> NDArray[np.float32]:
    """Score of each recording against the mean of the others: (recordings, axes), at least 2 -> (recordings,)."""
    others = unit(vectors.sum(0) - vectors)
    return similarity.scores(others, vectors).diagonal()


def make_similarity(
    vectors: Vectors, words: Sequence[str], speakers: Sequence[str], background: Vectors, hours: float, alone: float
) -> Similarity:
    """Whiten by the scatter within words, so that differences between recordings of one word count little.

    Args:
        vectors: (recordings, embedding).
        words: the word of each recording.
        speakers: the speaker of each recording; some speakers said a word `N_TAUGHT` times.
        background: (utterances, embedding) of running speech.
        hours: hours of speech that these utterances were cut from.
        alone: share of them that does not follow talk, 0..1.
    Source: Hatch et al. 2006, Within-Class Covariance Normalization for SVM-based Speaker Recognition.
    """
    names = sorted(set(words))
    which = np.array([names.index(word) for word in words])
    means = np.stack([vectors[which == n].mean(0) for n in range(len(names))])
    within = (vectors - means[which]).astype(np.float64)
    variances, axes = np.linalg.eigh(within.T @ within / max(1, len(vectors) - len(names)))
    variances = np.maximum(variances, 0)
    shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * variances.mean()
    projection, mean = (axes / np.sqrt(shrunk)).astype(np.float32), background.mean(0)
    made = Similarity(
        mean=mean,
        projection=projection,
        background=unit(((background - mean) @ projection).astype(np.float32)),
        words=tuple(names),
        places=(means - mean) @ projection,
        hours=hours,
        expected=Expectation(alone, 0.0, 0.0, 0.0, 0.0),
    )
    return replace(made, expected=_expected(made, made.project(vectors), which, np.array(speakers)))


def _expected(made: Similarity, vectors: Vectors, words: NDArray[np.int64], speakers: NDArray[np.str_]) -> Expectation:
    """Teach each word by one speaker, and each by several, and compare further recordings with these lessons."""
    good: list[Vectors] = [np.zeros(0, np.float32)]
    others, drifts, variances = [0.0], [0.0], [0.0]
    for word in range(words.max() + 1):
        here = np.flatnonzero(words == word)
        for speaker in sorted(set(speakers[here])):
            mine, rest = here[speakers[here] == speaker], here[speakers[here] != speaker]
            if len(mine) >= N_TAUGHT:
                lesson = vectors[mine[:N_TAUGHT]]
                good.append(left_out(made, lesson))
                if len(rest):
                    others.append(made.scores(unit(lesson.mean(0))[None], vectors[rest]).mean() - good[-1].mean())
        _, firsts = np.unique(speakers[here], return_index=True)
        if len(firsts) >= N_TAUGHT + 2:
            several = vectors[here[np.sort(firsts)]]
            lesson, further = several[:N_TAUGHT], several[N_TAUGHT:]
            scores = made.scores(unit(lesson.mean(0))[None], further)
            drifts.append(scores.mean() - left_out(made, lesson).mean())
            variances.append(scores.var(ddof=1))
    return Expectation(
        made.expected.alone,
        unlike=0.5 * float(np.quantile(np.concatenate(good), ODD_ONES)) if len(good) > 1 else 0.0,
        scatter=float(np.sqrt(np.mean(variances[1:] or [1.0]))),
        drift=float(np.std(drifts[1:] or [0.0])),
        others=min(0.0, float(np.mean(others[1:] or [0.0]))),
    )
