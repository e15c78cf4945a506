"""What no command is in: the shipped bundle must keep quiet at every level."""

from collections.abc import Callable

import numpy as np
import pytest

from speech.listener import Listener
from speech.recognizer import Recognizer

RATE = 16000
SECONDS = 20
TIME = np.arange(SECONDS * RATE) / RATE


def coloured(slope: float) -> np.ndarray:
    """Noise whose power falls with the frequency to the power of `slope`: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(TIME)))
    return np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 20.0) ** (-slope / 2), len(TIME))


def tones() -> np.ndarray:
    """Each second another pitch, 60 Hz to 4 kHz, half a second long."""
    pitch_hz = np.geomspace(60, 4000, SECONDS)[TIME.astype(int)]
    return np.sin(2 * np.pi * pitch_hz * TIME) * (TIME % 1 < 0.5)


def clicks() -> np.ndarray:
    """Short bursts, from one to twenty a second."""
    rng = np.random.default_rng(1)
    rate = np.cumsum(1 + TIME) / RATE
    return (np.diff(np.floor(rate), prepend=0) > 0) * rng.uniform(0.5, 1, len(TIME))


def chords() -> np.ndarray:
    """Four chords of decaying notes with overtones over and over, one every half second."""
    rng = np.random.default_rng(2)
    music = np.zeros(len(TIME))
    for beat in range(2 * SECONDS):
        time = TIME[: RATE // 2]
        root_hz = 220 * 2 ** (rng.choice([0, 5, 7, -3]) / 12)
        notes = [root_hz * 2 ** (step / 12) * k for step in (0, 4, 7) for k in (1, 2, 3)]
        played = sum(np.sin(2 * np.pi * hz * time) * np.exp(-4 * time) * root_hz / hz for hz in notes)
        music[beat * RATE // 2 :][: len(time)] += played
    return music


SOUNDS: dict[str, Callable[[], np.ndarray]] = {
    "white": lambda: coloured(0), "pink": lambda: coloured(1), "brown": lambda: coloured(2), "tones": tones,
    "clicks": clicks, "chords": chords, "silence": lambda: np.zeros(len(TIME)),
}  # fmt: skip


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener(Recognizer.load())


@pytest.mark.parametrize("level_db", [-40, -6])
@pytest.mark.parametrize("sound", SOUNDS)
def test_no_detection(listener: Listener, sound: str, level_db: float) -> None:
    """The level is that of the loudest sample."""
    samples = SOUNDS[sound]()
    scaled = samples / (np.abs(samples).max() or 1) * 10 ** (level_db / 20)
    assert list(listener.listen([scaled.astype(np.float32)])) == []
