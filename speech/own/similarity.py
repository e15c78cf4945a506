"""How alike two embeddings of a bundle are: a projection that groups recordings of a word, and background speech.

`recipes.similarity` computes it and stores it in the bundle's metadata.
"""

import base64
import binascii
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
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
HALVED = ("mean", "projection", "spread")
"""Fields stored in half precision."""
BYTES = ("background", "places")
"""Fields stored as whole multiples of 1/127 of their largest absolute value."""
METADATA = "speech.similarity"
"""Its key in a bundle's metadata."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Maps embeddings to unit vectors whose cosine measures how alike two utterances are."""

    mean: Vectors
    """(embedding,) mean of the background."""
    projection: Vectors
    """(embedding, axes) makes the scatter of a word's recordings about equal along each axis."""
    spread: Vectors
    """(axes,) standard deviation of that scatter after the projection; below 1 where shrinkage raised the variance."""
    background: Vectors
    """(utterances, axes) running speech, unit vectors."""
    words: tuple[str, ...]
    """Common words, including those of the bundle."""
    places: Vectors
    """(words, axes) mean of each word's recordings after the projection; not unit vectors."""
    hours: float
    """Hours of running speech that the background was cut from."""

    def __post_init__(self) -> None:
        n, axes = self.projection.shape
        shapes = (self.mean.shape, self.spread.shape, self.background.shape[1:], self.places.shape)
        if shapes != ((n,), (axes,), (axes,), (len(self.words), axes)) or len(self.background) < N_NEAREST:
            raise BundleError(f"{METADATA} in the bundle does not fit together; make it again with recipes.similarity")

    def project(self, embeddings: Vectors) -> Vectors:
        """(batch, embedding) -> (batch, axes), unit vectors."""
        return unit(((embeddings - self.mean) @ self.projection).astype(np.float32))

    def scores(self, place: Vectors, vectors: Vectors) -> NDArray[np.float32]:
        """How much more alike utterances are to a word than to the nearest background utterances.

        A score is the cosine to the word, in standard deviations above the mean cosine to the `N_NEAREST` nearest
        background utterances.  So one threshold suits all words and utterances.

        Args:
            place: (axes,) unit vector of the word.
            vectors: (batch, axes) unit vectors of the utterances.
        Returns:
            (batch,).
        Source: Auckenthaler et al. 2000, Score Normalization for Text-Independent Speaker Verification Systems
            (T-norm); Matejka et al. 2017, Analysis of Score Normalization, for the use of the nearest only.
        """
        return _normalised(vectors @ self.background.T, vectors @ place)

    def background_scores(self, place: Vectors) -> NDArray[np.float32]:
        """(utterances,) the same scores for the background utterances, each normalised by the others."""
        cosines = self.background @ self.background.T
        np.fill_diagonal(cosines, -1)
        return _normalised(cosines, self.background @ place)

    @cached_property
    def key(self) -> str:
        """A short hash that identifies this encoder and this background."""
        return hashlib.sha256(self.as_text().encode()).hexdigest()[:16]

    def as_text(self) -> str:
        """Text for the bundle's metadata: an NPZ file in base64."""
        arrays: dict[str, NDArray[np.generic]] = {"words": np.array(self.words, np.str_)}
        arrays |= {name: getattr(self, name).astype(np.float16) for name in HALVED}
        for name in BYTES:
            values = getattr(self, name)
            step = float(np.abs(values).max()) / 127
            arrays |= {name: np.rint(values / step).astype(np.int8), f"{name}_step": np.array(step)}
        arrays["hours"] = np.array(self.hours)
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        return base64.b64encode(packed.getvalue()).decode()

    @classmethod
    def from_text(cls, text: str) -> "Similarity":
        """Read what `as_text` wrote.  Raises BundleError when it is damaged."""
        try:
            with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as arrays:
                values = {f.name: arrays[f.name] for f in fields(cls)}
                values |= {name: values[name] * arrays[f"{name}_step"] for name in BYTES}
        except (binascii.Error, zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
            raise BundleError(f"damaged bundle: {METADATA} can't be read: {error}") from error
        words, hours = tuple(map(str, values["words"])), float(values["hours"])
        return cls(words=words, hours=hours, **{n: values[n].astype(np.float32) for n in (*HALVED, *BYTES)})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Similarity | None":
        """Read it from a bundle's metadata; None if there is none.  Raises BundleError when it is damaged."""
        return cls.from_text(metadata[METADATA]) if METADATA in metadata else None


def _normalised(others: Vectors, cosines: Vectors) -> NDArray[np.float32]:
    """Normalise cosines (batch,) by mean and deviation of the `N_NEAREST` largest of `others` (batch, utterances)."""
    nearest = np.partition(others, -N_NEAREST, axis=1)[:, -N_NEAREST:]
    scores: NDArray[np.float32] = (cosines - nearest.mean(1)) / (nearest.std(1) + 1e-6)
    return scores


def unit(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Scale vectors (..., axes) to length 1."""
    scaled = vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)
    return scaled.astype(np.float32)


def make_similarity(vectors: Vectors, words: Sequence[str], background: Vectors, hours: float) -> Similarity:
    """Whiten by the scatter within words, so that differences between recordings of one word count little.

    Args:
        vectors: (recordings, embedding).
        words: the word of each recording.
        background: (utterances, embedding) of running speech.
        hours: hours of speech that these utterances were cut from.
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
    return Similarity(
        mean=mean,
        projection=projection,
        spread=np.sqrt(variances / shrunk).astype(np.float32),
        background=unit(((background - mean) @ projection).astype(np.float32)),
        words=tuple(names),
        places=(means - mean) @ projection,
        hours=hours,
    )
