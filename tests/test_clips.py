import numpy as np
import pytest
import soundfile

from recipes.data.clips import (
    CLIP,
    FRAME,
    cut_talk,
    cut_utterances,
    extent,
    fit,
    frame_power,
    impacts,
    procedural_noise,
    procedural_sound,
    set_level,
)
from speech.segment import ListenerConfig, utterances_of

DEMO = "speech/demo.flac"


def word(start: int = 5000, end: int = 9000) -> np.ndarray:
    clip = np.zeros(CLIP, np.float32)
    clip[start:end] = 0.5 * np.sin(np.arange(end - start) / 5)
    return clip


def hiss(length: int, level: float = 0.002) -> np.ndarray:
    return level * np.random.default_rng(0).standard_normal(length).astype(np.float32)


def test_extent_finds_the_word() -> None:
    start, end = extent(word() + hiss(CLIP))
    assert 0 <= 5000 - start <= 320
    assert 0 <= end - 9000 <= 320
    assert extent(np.zeros(CLIP, np.float32)) == (0, CLIP)
    assert extent(np.ones(300, np.float32)) == (0, 300)


def test_extent_keeps_a_weak_end_and_is_no_click() -> None:
    rng = np.random.default_rng(0)
    clip = word() + 0.0005 * rng.standard_normal(CLIP).astype(np.float32)
    clip[10500:13000] += 0.01 * np.diff(rng.standard_normal(2501)).astype(np.float32)  # as the "ff" of "off"
    assert extent(clip)[1] >= 12900
    quiet = 0.02 * word()
    quiet[1000:1010] = 1
    start, end = extent(quiet)
    assert start <= 5000
    assert end >= 9000


@pytest.mark.parametrize(("pause_s", "n_utterances"), [(0.2, 1), (0.4, 2)])
def test_a_pause_ends_an_utterance(pause_s: float, n_utterances: int) -> None:
    sound = 0.5 * np.sin(np.arange(8000) / 5).astype(np.float32)
    begins = np.array([4000, 12000 + round(pause_s * CLIP)])
    stream = hiss(3 * CLIP)
    for begin in begins:
        stream[begin : begin + 8000] += sound
    found = cut_utterances(stream)
    assert len(found) == n_utterances
    assert abs(found[0, 0] - begins[0]) <= 2 * FRAME
    assert abs(found[-1, 1] - (begins[1] + 8000)) <= 2 * FRAME


def test_talk_is_cut_as_the_live_endpointer_cuts_it() -> None:
    demo, _ = soundfile.read(DEMO, dtype="float32")
    config = ListenerConfig()
    expected = [(u.start, u.end) for u in utterances_of(demo, config, 60.0)]
    assert len(expected) > 3
    assert [tuple(ends) for ends in cut_talk(demo)] == expected
    assert [tuple(ends) for ends in cut_talk(demo)] == expected, "the detector begins anew"


def test_nothing_is_no_utterance() -> None:
    assert cut_utterances(np.zeros(CLIP, np.float32)).shape == (0, 2)
    assert cut_utterances(np.zeros(10, np.float32)).shape == (0, 2)


def test_a_steady_sound_is_one_utterance() -> None:
    assert cut_utterances(hiss(2 * CLIP)).tolist() == [[0, 2 * CLIP]]


def test_fit_centres() -> None:
    assert fit(np.ones(4, np.float32), 8).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert fit(np.arange(8, dtype=np.float32), 4).tolist() == [2, 3, 4, 5]


def test_frame_power_is_the_mean_square_of_each_whole_frame() -> None:
    waveform = np.r_[np.full(FRAME, 0.5), np.full(FRAME, -1.0), 9.0].astype(np.float32)
    assert frame_power(waveform).tolist() == [0.25, 1.0]


@pytest.mark.parametrize("make", [procedural_noise, lambda rng: impacts(rng, CLIP)])
def test_a_made_sound_peaks_at_one(make) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert np.abs(make(rng)).max() == pytest.approx(1, abs=1e-3)


def test_impacts_begin_suddenly_and_die_away() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        power = np.r_[0, frame_power(impacts(rng, 2 * CLIP))]
        loudest = int(power.argmax())
        assert power[max(0, loudest - 3) : loudest].min() < 0.5 * power[loudest]
        assert power[-1] < power[loudest]


def test_a_seed_makes_the_same_sound() -> None:
    np.testing.assert_array_equal(procedural_sound(3), procedural_sound(3))
    assert not np.array_equal(procedural_sound(3), procedural_sound(4))
    assert len(procedural_sound(3)) == 2 * CLIP


def test_level() -> None:
    assert np.sqrt(np.square(set_level(word(), -30)).mean()) == pytest.approx(10 ** (-30 / 20), rel=1e-3)
