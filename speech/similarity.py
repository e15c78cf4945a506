"""What a bundle's embeddings mean: directions in which recordings of one word lie close, and the speech around them.

It is made by `recipes.similarity` and travels in the bundle's metadata.
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
"""Weight of the mean variance in the scatter within words, as there are few recordings of most."""
N_NEAREST = 100
"""Utterances of the background that a score is set against."""
HALVED = ("mean", "projection", "spread")
"""What is kept in half precision."""
BYTES = ("background", "places")
"""What is kept in whole steps of a 127th of its largest value."""
METADATA = "speech.similarity"
"""Where a bundle's metadata holds it."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Embeddings as unit vectors: the cosine tells how alike two utterances are."""

    mean: Vectors
    """(embedding,) of the background."""
    projection: Vectors
    """(embedding, axes) after which recordings of a word scatter about alike along each axis."""
    spread: Vectors
    """(axes,) standard deviation of that scatter; below 1 where the projection was drawn in."""
    background: Vectors
    """(utterances, axes) of running speech, unit vectors."""
    words: tuple[str, ...]
    """Common words, those of the bundle among them."""
    places: Vectors
    """(words, axes) mean of each word's recordings, after the projection; no unit vectors."""
    hours: float
    """Of running speech that the background comes from."""

    def __post_init__(self) -> None:
        n, axes = self.projection.shape
        shapes = (self.mean.shape, self.spread.shape, self.background.shape[1:], self.places.shape)
        if shapes != ((n,), (axes,), (axes,), (len(self.words), axes)) or len(self.background) < N_NEAREST:
            raise BundleError(f"a bundle whose {METADATA} does not fit together; make it again with recipes.similarity")

    def project(self, embeddings: Vectors) -> Vectors:
        """(batch, embedding) -> (batch, axes), unit vectors."""
        return unit(((embeddings - self.mean) @ self.projection).astype(np.float32))

    def scores(self, place: Vectors, vectors: Vectors) -> NDArray[np.float32]:
        """How much more alike vectors are to a word than to what they are most alike in the background.

        Each cosine is told in standard deviations from the `N_NEAREST` of the background, so that one threshold
        suits all words and utterances.

        Args:
            place: (axes,) of the word, a unit vector.
            vectors: (batch, axes) unit vectors.
        Source: Auckenthaler et al. 2000, Score Normalization for Text-Independent Speaker Verification Systems
            (T-norm); Matejka et al. 2017, Analysis of Score Normalization, for taking the nearest only.
        """
        return _set_against(vectors @ self.background.T, vectors @ place)

    def background_scores(self, place: Vectors) -> NDArray[np.float32]:
        """(utterances,) the same of the background itself, each against the others."""
        cosines = self.background @ self.background.T
        np.fill_diagonal(cosines, -1)
        return _set_against(cosines, self.background @ place)

    @cached_property
    def key(self) -> str:
        """A short text that another encoder or another background does not have."""
        return hashlib.sha256(self.as_text().encode()).hexdigest()[:16]

    def as_text(self) -> str:
        """For the bundle's metadata: an NPZ, as base64."""
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
        """Raises BundleError when it is damaged."""
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
        """None for a bundle without one.  Raises BundleError when it is damaged."""
        return cls.from_text(metadata[METADATA]) if METADATA in metadata else None


def _set_against(others: Vectors, cosines: Vectors) -> NDArray[np.float32]:
    """Cosines (batch,) in deviations from the highest of `others` (batch, utterances)."""
    nearest = np.partition(others, -N_NEAREST, axis=1)[:, -N_NEAREST:]
    scores: NDArray[np.float32] = (cosines - nearest.mean(1)) / (nearest.std(1) + 1e-6)
    return scores


def unit(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """(..., axes) at length 1."""
    scaled = vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)
    return scaled.astype(np.float32)


def make_similarity(vectors: Vectors, words: Sequence[str], background: Vectors, hours: float) -> Similarity:
    """Whiten by the scatter within words, so that what differs between recordings of one word counts little.

    Args:
        vectors: (recordings, embedding) of `words`.
        background: (utterances, embedding) of running speech.
        hours: in which these were.
    Source: Hatch et al. 2006, Within-Class Covariance Normalization for SVM-based Speaker Recognition.
    """
    names = sorted(set(words))
    which = np.array([names.index(word) for word in words])
    means = np.stack([vectors[which == n].mean(0) for n in range(len(names))])
    within = (vectors - means[which]).astype(np.float64)
    variances, axes = np.linalg.eigh(within.T @ within / max(1, len(vectors) - len(names)))
    variances = np.maximum(variances, 0)
    drawn_in = (1 - SHRINKAGE) * variances + SHRINKAGE * variances.mean()
    projection, mean = (axes / np.sqrt(drawn_in)).astype(np.float32), background.mean(0)
    return Similarity(
        mean=mean,
        projection=projection,
        spread=np.sqrt(variances / drawn_in).astype(np.float32),
        background=unit(((background - mean) @ projection).astype(np.float32)),
        words=tuple(names),
        places=(means - mean) @ projection,
        hours=hours,
    )
