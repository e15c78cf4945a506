"""Plans for batches of waveforms, and their rendering from the bank of samples on any device.

A plan lists which cut of which recording goes where.  It is cheap to draw (numpy) and small to move.  Rendering takes
a few gathers in torch without a loop over the examples, so one process keeps a GPU that holds the bank busy.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from recipes.data.clips import SAMPLE_RATE_HZ, Numbers, Reals
from recipes.data.corpus import Corpus

FADE = SAMPLE_RATE_HZ // 100
"""Samples over which each element fades in and out: 10 ms."""
BLOCK = SAMPLE_RATE_HZ // 20
"""Elements are rendered in blocks of this many samples: 50 ms."""
INT16 = 32768.0


class Movable:
    """A dataclass whose tensors, nested ones included, move to a device together."""

    def to(self, device: torch.device | str) -> Self:
        moved = {
            field.name: value.to(device)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor | Movable)
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class Elements(Movable):
    """Cuts of recordings and their places in a batch; tensors (elements,)."""

    row: Tensor
    """Index of the waveform in the batch."""
    place: Tensor
    """First sample in that waveform."""
    begin: Tensor
    """First sample in the bank."""
    length: Tensor
    """Samples taken from the bank."""
    n_samples: Tensor
    """Samples in the waveform: 1 + (length - 1) // speed."""
    speed: Tensor
    gain: Tensor
    n_blocks: int
    """Blocks of `BLOCK` samples for all elements; each element begins a new block."""


@dataclass(frozen=True)
class Plan(Movable):
    """A batch of waveforms of equal length."""

    n_rows: int
    n_samples: int
    elements: Elements
    noises: Elements
    """Noise that is mixed in later, at speed 1 and without fades."""


def plan_elements(
    corpus: Corpus,
    row: Numbers,
    place: Numbers,
    recording: Numbers,
    start: Numbers,
    end: Numbers,
    speed: Reals,
    gain: Reals,
) -> Elements:
    """Make elements from `start` to `end` of each recording, clipped to its bounds; empty ones are left out."""
    start, end = np.maximum(start, 0), np.minimum(end, corpus.length[recording])
    used = end > start
    length = (end - start)[used]
    n_samples = played(length, speed[used])
    return Elements(
        row=torch.from_numpy(row[used]),
        place=torch.from_numpy(place[used]),
        begin=torch.from_numpy((corpus.begin[recording] + start)[used]),
        length=torch.from_numpy(length),
        n_samples=torch.from_numpy(n_samples),
        speed=torch.from_numpy(speed[used].astype(np.float32)),
        gain=torch.from_numpy(gain[used].astype(np.float32)),
        n_blocks=int((-(-n_samples // BLOCK)).sum()),
    )


def plan_noises(
    corpus: Corpus, row: Numbers, recording: Numbers, offset: Numbers, gain: Reals, n_samples: int
) -> Elements:
    """Make noise of `n_samples` from `offset` of each recording on; a recording that ends is repeated."""
    length = corpus.length[recording]
    rounds = -(-(offset + n_samples) // length)  # how often each is started
    which = np.repeat(np.arange(len(row)), rounds)
    number = np.arange(len(which)) - np.repeat(np.cumsum(rounds) - rounds, rounds)
    start = np.where(number == 0, offset[which], 0)
    place = np.where(number == 0, 0, number * length[which] - offset[which])
    end = np.minimum(length[which], start + n_samples - place)
    return plan_elements(corpus, row[which], place, recording[which], start, end, np.ones(len(which)), gain[which])


def played(length: Numbers, speed: Reals) -> Numbers:
    """Number of samples after `length` samples are played `speed` times as fast."""
    single = speed.astype(np.float32).astype(np.float64)  # the precision used in rendering
    return 1 + np.floor((length - 1) / single).astype(np.int64)


def render(plan: Plan, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Render the waveforms and their noise: each (n_rows, n_samples), on the device of `bank`.

    Speed is changed by linear interpolation.  Each element fades in and out within 10 ms.  Overlapping elements are
    added.

    Args:
        plan: on the device of `bank`.
        bank: (samples,) int16.
    """
    shape = plan.n_rows, plan.n_samples
    return play(plan.elements, bank, shape, faded=True), play(plan.noises, bank, shape, faded=False)


def play(elements: Elements, bank: Tensor, shape: tuple[int, int], faded: bool) -> Tensor:
    """Add all elements at their places to a batch of zeros; samples outside the batch are dropped.

    With `faded` false, elements have no fades and their speed is taken as 1.
    """
    n_rows, n_samples = shape
    canvas = torch.zeros(n_rows * n_samples, device=bank.device)
    if not elements.n_blocks:
        return canvas.view(shape)
    count = -(-elements.n_samples // BLOCK)
    number = torch.arange(len(count), device=bank.device)
    element = torch.repeat_interleave(number, count, output_size=elements.n_blocks)  # (blocks,)
    block = torch.arange(elements.n_blocks, device=bank.device) - (count.cumsum(0) - count)[element]
    within = block[:, None] * BLOCK + torch.arange(BLOCK, device=bank.device)  # (blocks, BLOCK)

    def of(values: Tensor) -> Tensor:
        return values[element][:, None]

    if faded:
        value = resample(elements, bank, within, of)
        edge = torch.minimum(within, of(elements.n_samples) - 1 - within)
        value = value * (of(elements.gain) / (INT16 * FADE)) * edge.clamp(0, FADE)
    else:
        last = of(elements.begin + elements.length - 1)
        value = bank[torch.minimum(of(elements.begin) + within, last)] * (of(elements.gain) / INT16)
    place = of(elements.place) + within
    inside = (within < of(elements.n_samples)) & (place >= 0) & (place < n_samples)
    target = of(elements.row) * n_samples + place.clamp(0, n_samples - 1)
    return canvas.index_add_(0, target.view(-1), (value * inside).view(-1)).view(shape)


def resample(elements: Elements, bank: Tensor, within: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Interpolate each element at its positions `within * speed`: (blocks, BLOCK)."""
    ahead = within * (of(elements.speed) - 1)  # offset from the position at speed 1; small, hence precise
    low = ahead.floor()
    last = of(elements.begin + elements.length - 1)
    first = torch.minimum(of(elements.begin) + within + low.long(), last)
    second = torch.minimum(first + 1, last)
    lower = bank[first].float()
    return lower + (bank[second] - lower) * (ahead - low)


def no_noise() -> Elements:
    """Empty elements, for waveforms without noise."""
    none = torch.zeros(0, dtype=torch.long)
    return Elements(none, none, none, none, none, none.float(), none.float(), 0)


def as_bank(corpus: Corpus, device: torch.device | str) -> Tensor:
    """Move all samples of the corpus to a device as int16; on the CPU they stay memory-mapped."""
    return torch.from_numpy(np.asarray(corpus.samples)).to(device)
