"""What a bundle's embeddings mean: a space in which recordings of one word lie close, and the speech that is around.

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

import numpy as np
from numpy.typing import NDArray

from speech.errors import BundleError

Vectors = NDArray[np.float32]

VECTORS = ("mean", "projection", "between", "background", "places")
"""What is kept in half precision."""
N_AXES = 64
"""Axes of the space."""
SHRINKAGE = 0.1
"""Weight of the mean variance in the scatter within words, as there are few recordings of most."""
METADATA = "speech.similarity"
"""Where a bundle's metadata holds it."""


@dataclass(frozen=True)
class Similarity:
    """A linear space of `n_axes` in which recordings of one word scatter by 1 along each axis."""

    mean: Vectors
    """(embedding,) of all speech."""
    projection: Vectors
    """(embedding, axes)"""
    between: Vectors
    """(axes,) variance of the words' own places along each axis."""
    background: Vectors
    """(pieces, axes) of utterances from running speech, none of them a word alone."""
    words: tuple[str, ...]
    """Common words, those of the bundle among them."""
    places: Vectors
    """(words, axes) where the recordings of each lie in the mean."""
    hours: float
    """Of running speech that the background comes from."""

    def __post_init__(self) -> None:
        n, axes = self.projection.shape
        shapes = (self.mean.shape, self.between.shape, self.background.shape[1:], self.places.shape)
        if shapes != ((n,), (axes,), (axes,), (len(self.words), axes)) or not len(self.background):
            raise BundleError(f"a bundle whose {METADATA} does not fit together; make it again with recipes.similarity")

    def project(self, embeddings: Vectors) -> Vectors:
        """(batch, embedding) -> (batch, axes)"""
        projected: Vectors = np.matmul(embeddings - self.mean, self.projection, dtype=np.float32)
        return projected

    @cached_property
    def key(self) -> str:
        """A short text that another encoder or another background does not have."""
        return hashlib.sha256(self.as_text().encode()).hexdigest()[:16]

    def as_text(self) -> str:
        """For the bundle's metadata: an NPZ in half precision, as base64."""
        arrays: dict[str, NDArray[np.generic]] = {"words": np.array(self.words, np.str_)}
        arrays |= {name: getattr(self, name).astype(np.float16) for name in VECTORS}
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
        except (binascii.Error, zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
            raise BundleError(f"damaged bundle: {METADATA} can't be read: {error}") from error
        words, hours = tuple(map(str, values["words"])), float(values["hours"])
        return cls(words=words, hours=hours, **{name: values[name].astype(np.float32) for name in VECTORS})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Similarity | None":
        """None for a bundle without one.  Raises BundleError when it is damaged."""
        return cls.from_text(metadata[METADATA]) if METADATA in metadata else None


def spread(vectors: Vectors, words: Sequence[str]) -> tuple[Vectors, Vectors, float]:
    """Scatter of recordings around their word's mean, of the means around theirs, and 1 / recordings of a word.

    Args:
        vectors: (recordings, embedding) of `words`.
    """
    names = sorted(set(words))
    which = np.array([names.index(word) for word in words])
    counts = np.bincount(which)
    means = np.stack([vectors[which == n].mean(0) for n in range(len(names))])
    within = vectors - means[which]
    within = within.T @ within / (len(vectors) - len(names))
    within = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    return within, np.cov(means.T), float((1 / counts).mean())


def make_similarity(vectors: Vectors, words: Sequence[str], background: Vectors, hours: float) -> Similarity:
    """The space in which words scatter alike and lie as far apart as they can.

    Args:
        vectors: (recordings, embedding) of `words`.
        background: (utterances, embedding) of running speech.
        hours: in which these were.
    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 4.1.6 (Fisher's discriminant for several
        classes); Ioffe 2006 for the variance of the words' places.
    """
    within, between, noise = spread(vectors.astype(np.float64), words)
    values, axes = np.linalg.eigh(within)
    whitening = axes / np.sqrt(values)
    strength, axes = np.linalg.eigh(whitening.T @ between @ whitening)
    best = [n for n in strength.argsort()[::-1][:N_AXES] if strength[n] > noise]  # the others only scatter
    names = sorted(set(words))
    means = np.stack([vectors[np.array(words) == name].mean(0) for name in names])
    mean, projection = means.mean(0), whitening @ axes[:, best]
    return Similarity(
        mean=mean,
        projection=projection.astype(np.float32),
        between=(strength[best] - noise).astype(np.float32),
        background=((background - mean) @ projection).astype(np.float32),
        words=tuple(names),
        places=((means - mean) @ projection).astype(np.float32),
        hours=hours,
    )
