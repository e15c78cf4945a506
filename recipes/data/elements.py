"""Elements of examples, and their sum as mel power.

An element is a stretch of the store's pictures, with a place, a tempo, a vocal tract length and a gain.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.data.store import Numbers
from speech.model.features import N_MELS, mel_centres_hz, mel_edges, mel_of

ELEMENT = np.dtype(
    [(name, np.int64) for name in ("row", "place", "begin", "length", "lead", "trail", "fill", "n_fill")]
    + [(name, np.float32) for name in ("tempo", "tract", "gain_db")]
)
"""An element: the example it belongs to; the frame of its first frame there; its first frame in the store and their
number; frames before and after it that are filled from `n_fill` frames at `fill` of the store; tempo; relative length
of the vocal tract; gain."""
Elements = NDArray[np.void]
NONE: Elements = np.zeros(0, ELEMENT)


@dataclass(frozen=True)
class Plan:
    """A batch of examples before it is rendered."""

    elements: Elements
    noises: Elements
    n_rows: int
    n_frames: int
    label: Tensor
    """(batch,) class of an utterance; (batch, longest transcript) tokens of a sequence, padded with 0."""
    extra: Tensor
    """(batch,) word of an utterance in `Composer.words`, -1 for none or several; number of tokens of a sequence."""
    sounding: Tensor
    """(batch,) bool; the others are noise or digital silence, and get no further noise."""

    def to(self, device: torch.device | str) -> "Plan":
        """Move the targets; elements stay with numpy until they are rendered."""
        label, extra, sounding = (x.to(device) for x in (self.label, self.extra, self.sounding))
        return replace(self, label=label, extra=extra, sounding=sounding)


def played(length: Numbers, tempo: NDArray[np.float32]) -> Numbers:
    """Frames that `length` frames of the store last at this tempo: 1 + (length - 1) // tempo, none for none."""
    return np.where(length > 0, 1 + np.floor((length - 1) / tempo + 1e-4).astype(np.int64), 0)


def laid(elements: Elements, place: Numbers, n_frames: int, fill: bool) -> Elements:
    """Place elements, one a row, so that their sound begins at `place`; with `fill`, quiet frames surround them."""
    found = elements.copy()
    found["row"] = np.arange(len(found))
    found["place"] = place - elements["lead"]
    end = found["place"] + played(found["length"], found["tempo"])
    filled = fill & (found["n_fill"] > 0)
    found["lead"] = np.where(filled, np.maximum(found["place"], 0), 0)
    found["trail"] = np.where(filled, np.maximum(n_frames - end, 0), 0)
    return found


def render(frames: Tensor, elements: Elements, n_rows: int, n_frames: int) -> Tensor:
    """Add up the mel power of elements: (n_rows, n_frames, N_MELS), on the device of `frames`.

    Frames and bands between those of the store are interpolated in the logarithm.  Elements are clipped at the ends of
    their example.

    Args:
        frames: (stored, N_MELS) log mel power.
        elements: of type `ELEMENT`, (elements,).
    """
    device = frames.device
    canvas = torch.zeros(n_rows * n_frames, N_MELS, device=device)
    if not len(elements):
        return canvas.view(n_rows, n_frames, N_MELS)
    of = {name: torch.from_numpy(elements[name].copy()).to(device) for name in ELEMENT.names or ()}
    count = torch.from_numpy(played(elements["length"], elements["tempo"])).to(device)
    total = of["lead"] + count + of["trail"]
    element = torch.repeat_interleave(torch.arange(len(total), device=device), total)  # (pairs,)
    within = torch.arange(len(element), device=device) - (total.cumsum(0) - total + of["lead"])[element]
    inside = (within >= 0) & (within < count[element])
    position = within.clamp(min=0) * of["tempo"][element]
    low = position.long().minimum((of["length"] - 1)[element])
    share = (position - low).clamp(0, 1)
    filling = of["fill"][element] + within.abs() % of["n_fill"].clamp(min=1)[element]
    first = torch.where(inside, of["begin"][element] + low, filling)
    picture = frames[first].float()  # (pairs, N_MELS)
    if bool((of["tempo"] != 1).any()):
        second = torch.where(inside & (low < of["length"][element] - 1), first + 1, first)
        picture = torch.lerp(picture, frames[second].float(), share[:, None])
    picture = bent(picture, of["tract"], element) + (np.log(10) / 10 * of["gain_db"])[element, None]
    place = of["place"][element] + within
    there = (place >= 0) & (place < n_frames)
    target = (of["row"][element] * n_frames + place)[there]
    return canvas.index_add_(0, target, picture[there].exp()).view(n_rows, n_frames, N_MELS)


def bent(picture: Tensor, tract: Tensor, element: Tensor) -> Tensor:
    """Stretch pictures (pairs, N_MELS) along frequency by the tract of their element, (elements,)."""
    if bool((tract == 1).all()):
        return picture
    first, second = mel_edges()[1:3].tolist()
    wanted = mel_of(mel_centres_hz().to(tract.device) * tract[:, None])  # (elements, N_MELS)
    band = ((wanted - first) / (second - first)).clamp(0, N_MELS - 1)
    lower = band.long().clamp(max=N_MELS - 2)
    share = (band - lower)[element]
    lower = lower[element]
    return torch.lerp(picture.gather(1, lower), picture.gather(1, lower + 1), share)
