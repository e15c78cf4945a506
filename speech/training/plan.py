"""What a batch of waveforms is made of, as numbers; and making it from the bank of samples, on any device.

A plan is cheap to draw (numpy) and small to move.  Rendering it is a few gathers in torch, without a loop over the
examples, so that a GPU that holds the bank is kept busy by one process.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speech.training.clips import SAMPLE_RATE_HZ
from speech.training.corpus import Corpus

FADE = SAMPLE_RATE_HZ // 100
"""Samples over which each element fades in and out: 10 ms."""
INT16 = 32768.0


class Movable:
    """A dataclass of tensors, and of others like it, that moves to a device as a whole."""

    def to(self, device: torch.device | str) -> Self:
        moved = {
            field.name: value.to(device)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor | Movable)
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class Elements(Movable):
    """Cuts of recordings and where each goes; all (elements,)."""

    row: Tensor
    """The waveform of the batch that it is part of."""
    place: Tensor
    """Its first sample there."""
    begin: Tensor
    """Its first sample in the bank."""
    length: Tensor
    """Samples that are taken from the bank."""
    n_samples: Tensor
    """Samples that it takes there: 1 + (length - 1) // speed."""
    speed: Tensor
    gain: Tensor
    total: int
    """Sum of `n_samples`."""


@dataclass(frozen=True)
class Noises(Movable):
    """Recordings that go on as long as the waveform does, from the beginning again where they end; all (noises,)."""

    row: Tensor
    begin: Tensor
    """First sample of the recording in the bank."""
    length: Tensor
    """Samples of the recording."""
    offset: Tensor
    """Sample of the recording that comes first."""
    gain: Tensor


@dataclass(frozen=True)
class Plan(Movable):
    """A batch of waveforms of equal length."""

    n_rows: int
    n_samples: int
    elements: Elements
    noises: Noises


def plan_elements(
    corpus: Corpus,
    row: NDArray[np.int64],
    place: NDArray[np.int64],
    recording: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    speed: NDArray[np.float64],
    gain: NDArray[np.float64],
) -> Elements:
    """Elements from `start` to `end` of each recording; empty ones are left out."""
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
        total=int(n_samples.sum()),
    )


def played(length: NDArray[np.int64], speed: NDArray[np.float64]) -> NDArray[np.int64]:
    """Samples that `length` samples give when they are played `speed` times as fast."""
    single = speed.astype(np.float32).astype(np.float64)  # as it is rendered
    return 1 + np.floor((length - 1) / single).astype(np.int64)


def render(plan: Plan, bank: Tensor) -> tuple[Tensor, Tensor]:
    """The waveforms and the noise to go with them: two times (n_rows, n_samples), on the device of `bank`.

    Speed changes by linear interpolation; each element fades in and out within 10 ms; elements that overlap are added.

    Args:
        plan: on the device of `bank`.
        bank: (samples,) int16.
    """
    elements = plan.elements
    canvas = torch.zeros(plan.n_rows * plan.n_samples, device=bank.device)
    if elements.total:
        value, index = play(elements, bank, plan.n_samples)
        canvas.index_add_(0, index, value)
    return canvas.view(plan.n_rows, plan.n_samples), render_noise(plan, bank)


def play(elements: Elements, bank: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
    """All samples of all elements in a row, and where each goes in the flat batch; what lies outside becomes zero."""
    count, total = elements.n_samples, elements.total
    number = torch.arange(len(count), device=bank.device)
    element = torch.repeat_interleave(number, count, output_size=total)  # (total,)
    within = torch.arange(total, device=bank.device) - (count.cumsum(0) - count)[element]
    source = within * elements.speed[element]
    low = source.floor()
    begin = elements.begin[element]
    first = begin + low.long()
    second = torch.minimum(first + 1, begin + elements.length[element] - 1)
    lower, upper = bank[first].float(), bank[second].float()
    value = lower + (upper - lower) * (source - low)
    edge = torch.minimum(within, count[element] - 1 - within)
    value = value * (edge / FADE).clamp(max=1) * (elements.gain / INT16)[element]
    place = elements.place[element] + within
    value = value * ((place >= 0) & (place < n_samples))
    return value, elements.row[element] * n_samples + place.clamp(0, n_samples - 1)


def render_noise(plan: Plan, bank: Tensor) -> Tensor:
    """The noise of each waveform: (n_rows, n_samples)."""
    noises = plan.noises
    noise = torch.zeros(plan.n_rows, plan.n_samples, device=bank.device)
    if len(noises.row):
        time = torch.arange(plan.n_samples, device=bank.device)
        place = noises.begin[:, None] + (noises.offset[:, None] + time) % noises.length[:, None]
        noise.index_add_(0, noises.row, bank[place] * (noises.gain / INT16)[:, None])
    return noise


def no_noise() -> Noises:
    """For waveforms that stay as they are."""
    none = torch.zeros(0, dtype=torch.long)
    return Noises(none, none, none, none, none.float())


def as_bank(corpus: Corpus, device: torch.device | str) -> Tensor:
    """All samples of the corpus on a device, int16; on the CPU they stay in the file."""
    return torch.from_numpy(np.asarray(corpus.samples)).to(device)
