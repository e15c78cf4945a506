"""Plans and their rendering, against a reference that makes one element at a time."""

import numpy as np
import pytest
import torch

from recipes.data.corpus import Corpus
from recipes.data.plan import FADE, Plan, as_bank, no_noise, plan_elements, plan_noises, played, render

LENGTH = 20000


def random_plan(corpus: Corpus, n: int, seed: int) -> Plan:
    """`n` elements anywhere on four waveforms, partly outside, and a noise for each waveform."""
    rng = np.random.default_rng(seed)
    recording = rng.choice(corpus.select("training", "words"), n)
    start = rng.integers(0, 8000, n)
    elements = plan_elements(
        corpus, row=rng.integers(0, 4, n), place=rng.integers(-2000, LENGTH, n), recording=recording, start=start,
        end=start + rng.integers(0, 8000, n), speed=rng.uniform(0.75, 1.3, n), gain=rng.uniform(0.1, 3, n),
    )  # fmt: skip
    room = corpus.select("training", "rooms")[:1].repeat(4)  # shorter than the waveform: it goes round and round
    noises = plan_noises(corpus, np.arange(4), room, rng.integers(0, 4000, 4), rng.uniform(0.1, 1, 4), LENGTH)
    return Plan(4, LENGTH, elements, noises)


def slowly(plan: Plan, corpus: Corpus) -> np.ndarray:
    """The waveforms of a plan, one element after the other, in double precision."""
    waveforms = np.zeros((plan.n_rows, plan.n_samples))
    e = plan.elements
    for row, place, begin, length, n_samples, speed, gain in zip(
        *(x.tolist() for x in (e.row, e.place, e.begin, e.length, e.n_samples, e.speed, e.gain)), strict=True
    ):
        cut = corpus.samples[begin : begin + length] / 32768
        element = gain * np.interp(np.arange(n_samples) * speed, np.arange(length), cut)
        element *= np.minimum(1, np.minimum(np.arange(n_samples), np.arange(n_samples)[::-1]) / FADE)
        for at, sample in enumerate(element, start=place):
            if 0 <= at < plan.n_samples:
                waveforms[row, at] += sample
    return waveforms


@pytest.mark.parametrize("seed", [0, 1])
def test_rendering_is_what_one_element_at_a_time_gives(corpus: Corpus, seed: int) -> None:
    plan = random_plan(corpus, 12, seed)
    waveform, noise = render(plan, as_bank(corpus, "cpu"))
    assert waveform.shape == noise.shape == (4, LENGTH)
    np.testing.assert_allclose(waveform.numpy(), slowly(plan, corpus), atol=2e-4)
    assert waveform.abs().max() > 0.1


def test_a_noise_goes_on_from_its_offset_and_begins_again(corpus: Corpus) -> None:
    room = corpus.select("training", "rooms")[:2]
    offset, gain = np.array([3990, 17]), np.array([2.0, 0.5])
    noises = plan_noises(corpus, np.array([1, 1]), room, offset, gain, LENGTH)
    none = plan_elements(corpus, *(np.zeros(0, np.int64),) * 5, np.zeros(0), np.zeros(0))
    waveform, noise = render(Plan(2, LENGTH, none, noises), as_bank(corpus, "cpu"))
    rounds = [np.resize(np.roll(corpus[i], -o), LENGTH) * g for i, o, g in zip(room, offset, gain, strict=True)]
    np.testing.assert_allclose(noise[1].numpy(), sum(rounds), atol=1e-5)
    assert not noise[0].any()
    assert not waveform.any()


def test_an_element_takes_no_sample_from_its_neighbours(corpus: Corpus) -> None:
    recording = np.array([3])
    whole = np.array([corpus.length[3]])
    zero, one = np.zeros(1, np.int64), np.ones(1)
    for speed in (0.77, 1.0, 1.29):
        elements = plan_elements(corpus, zero, zero, recording, zero - 50, whole + 50, speed * one, one)
        last = (elements.n_samples.item() - 1) * elements.speed.item()
        assert whole[0] - 1 - 1.5 * speed < last <= whole[0] - 1
        assert elements.length.item() == whole[0]


def test_the_end_of_the_bank_is_no_limit(corpus: Corpus) -> None:
    last = len(corpus) - 1
    one, end = np.zeros(1, np.int64), corpus.length[last:]
    elements = plan_elements(corpus, one, one, one + last, end - 100, end, np.full(1, 0.9), np.ones(1))
    noises = plan_noises(corpus, one, one + last, end - 100, np.ones(1), 50)
    waveform, noise = render(Plan(1, 300, elements, noises), as_bank(corpus, "cpu"))
    assert waveform[0, :110].any()
    assert noise.any()


def test_speed_changes_the_number_of_samples() -> None:
    assert played(np.array([16000, 16000, 1]), np.array([1.25, 0.8, 1.0])).tolist() == [12800, 19999, 1]


def test_empty_elements_are_left_out(corpus: Corpus) -> None:
    zero = np.zeros(2, np.int64)
    elements = plan_elements(corpus, zero, zero, zero, np.array([5, 5]), np.array([5, 6]), np.ones(2), np.ones(2))
    assert len(elements.row) == 1
    waveform, noise = render(Plan(1, 400, elements, no_noise()), as_bank(corpus, "cpu"))
    assert torch.isfinite(waveform).all()
    assert not noise.any()
