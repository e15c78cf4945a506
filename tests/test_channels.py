"""One channel from many."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from speech import listen
from speech.errors import ConfigError
from speech.sound.channels import Channel, ChannelSelector, check, parse
from speech.sound.files import as_mono

RATE = 16000
BLOCK_S = 0.04


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Five words with the noise of a quiet room."""
    samples, rate = soundfile.read(listen.DEMO, dtype="float32")
    assert rate == RATE
    samples = samples[: 8 * RATE]
    return samples + noise(len(samples), 0.001, seed=1)


def noise(n: int, level: float, seed: int) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def selected(channel: Channel, *channels: np.ndarray) -> tuple[np.ndarray, ChannelSelector]:
    """What a device with these channels delivers, block by block."""
    selector = ChannelSelector(channel, BLOCK_S)
    samples = np.stack(channels, 1)
    blocks = np.array_split(samples, len(samples) // round(BLOCK_S * RATE))
    return np.concatenate([selector.push(block) for block in blocks]), selector


@pytest.mark.parametrize(("text", "channel"), [("left", 1), ("Right", 2), ("3", 3), ("mix", "mix"), ("best", "best")])
def test_a_channel_has_a_number_or_a_name(text: str, channel: Channel) -> None:
    assert parse(text) == channel


@pytest.mark.parametrize("text", ["0", "-1", "²", "1.5", "", "centre"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be left, right, best, mix or a number from 1 on"):
        parse(text)


@pytest.mark.parametrize("channel", [0, True, 1.0, None])
def test_another_value_is_refused(channel: object) -> None:
    with pytest.raises(ConfigError):
        check(channel)


def test_a_given_channel_or_the_mean_is_delivered(speech: np.ndarray) -> None:
    other = noise(len(speech), 0.1, seed=2)
    np.testing.assert_array_equal(selected(2, other, speech)[0], speech)
    np.testing.assert_allclose(selected("mix", other, speech)[0], (speech + other) / 2, atol=1e-6)
    np.testing.assert_array_equal(selected("best", speech)[0], speech)


@pytest.mark.parametrize("level", [0.003, 0.03, 0.3])
def test_a_hissing_channel_is_not_taken(speech: np.ndarray, level: float) -> None:
    np.testing.assert_array_equal(selected("best", noise(len(speech), level, seed=2), speech)[0][1280:], speech[1280:])
    np.testing.assert_array_equal(selected("best", speech, noise(len(speech), level, seed=2))[0], speech)


def test_a_hissing_channel_is_not_taken_when_the_other_one_is_gated(speech: np.ndarray) -> None:
    gated = np.where(np.abs(speech) < 0.01, 0, speech)
    for order in (1, -1):
        _, selector = selected("best", *[noise(len(speech), 0.05, seed=2), gated][::order])
        assert selector.current == (1, 0)[order < 0]


@pytest.mark.parametrize("rest", [0.0, 1e-5])
def test_a_digitally_silent_channel_is_never_taken(speech: np.ndarray, rest: float) -> None:
    found, _ = selected("best", noise(len(speech), rest, seed=2), speech)
    np.testing.assert_array_equal(found[1280:], speech[1280:])


def test_a_dead_channel_with_some_noise_is_left_with_the_first_word(speech: np.ndarray) -> None:
    sound = np.flatnonzero(np.abs(speech) > 0.05)[0]
    found, _ = selected("best", noise(len(speech), 1e-4, seed=2), speech)
    assert not np.array_equal(found[1280:sound], speech[1280:sound]), "it is the quieter one at first"
    np.testing.assert_array_equal(found[sound + 3 * 640 :], speech[sound + 3 * 640 :])


def test_a_channel_that_dies_is_left(speech: np.ndarray) -> None:
    """Peaks of a minute ago do not count as much as those of now."""
    wait = noise(70 * RATE, 0.001, seed=3)
    first = np.concatenate([speech, wait, noise(len(speech), 0.001, seed=4)])
    second = np.concatenate([noise(len(speech), 0.001, seed=5), wait, speech])
    found, selector = selected("best", first, second)
    assert selector.current == 1
    np.testing.assert_array_equal(found[: len(speech)], first[: len(speech)])


def test_opposite_phases_do_not_cancel(speech: np.ndarray) -> None:
    np.testing.assert_array_equal(selected("best", speech, -speech)[0], speech)
    assert not selected("mix", speech, -speech)[0].any()


def test_equal_channels_are_not_switched(speech: np.ndarray) -> None:
    """Microphones of an array differ by a few dB."""
    array = [gain * speech + noise(len(speech), 0.001, seed=n) for n, gain in enumerate([0.7, 1, 0.9, 0.8])]
    np.testing.assert_array_equal(selected("best", *array)[0], array[0])


@pytest.mark.parametrize("level", [0.003, 0.012])
def test_what_is_played_is_not_taken_for_speech(speech: np.ndarray, level: float) -> None:
    """Arrays have a channel with what the loudspeaker plays: digital silence, then loud music."""
    n = len(speech)
    played = np.zeros(n, np.float32)
    played[n // 3 : n // 2] = noise(n // 2 - n // 3, 0.3, seed=3)
    for order in (1, -1):
        _, selector = selected("best", *[speech + noise(n, level, seed=4), played][::order])
        assert selector.current == (0, 1)[order < 0]


def test_a_click_does_not_take_over(speech: np.ndarray) -> None:
    clicking = noise(len(speech), 0.0002, seed=2)
    clicking[5 * RATE :: 3 * RATE] = 1.0
    noisy = speech + noise(len(speech), 0.03, seed=3)
    assert selected("best", noisy, clicking)[1].current == 0


def test_a_switch_has_no_seam() -> None:
    time = np.arange(4 * RATE) / RATE
    tone = (0.1 * np.sin(2 * np.pi * 97 * time)).astype(np.float32)
    quiet = np.concatenate([noise(2 * RATE, 1e-4, seed=1), 5 * tone[: 2 * RATE]]) + 1e-4
    found, selector = selected("best", noise(4 * RATE, 4e-5, seed=2), quiet)
    assert selector.current == 1
    assert np.abs(np.diff(found)).max() <= np.abs(np.diff(quiet)).max() + 0.001


def test_many_channels_cost_little() -> None:
    """Eight are opened at most; estimating every noise floor at every block took 28 times as long as the mean."""
    blocks = [noise(1764 * 8, 0.01, seed).reshape(-1, 8) for seed in range(10)]

    def cost_s(function: Callable[[np.ndarray], object]) -> float:
        begin_s = time.process_time()
        for n in range(1000):
            function(blocks[n % 10])
        return time.process_time() - begin_s

    assert cost_s(ChannelSelector("best", BLOCK_S).push) < 15 * cost_s(lambda block: as_mono(block[:, 0]))
