"""Generated sounds: sloped noise, tones, chords, clicks, knocks, keys."""

import numpy as np
from numpy.typing import NDArray

from recipes.data.sounds import Waveform
from speech.segment import SAMPLE_RATE_HZ

Reals = NDArray[np.float64]


def procedural_noise(rng: np.random.Generator, length: int) -> Waveform:
    """Noise with a random spectral slope, a few tones, a gliding chord or some clicks; the peak is 1."""
    makers = (sloped_noise, steady_tones, gliding_chord, clicks)
    noise = makers[rng.integers(len(makers))](rng, length)
    return (noise / (np.abs(noise).max() + 1e-9)).astype(np.float32)


def sloped_noise(rng: np.random.Generator, length: int) -> Reals:
    """White noise tilted by a random power of the frequency."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(-0.5, 1.2)
    return np.fft.irfft(spectrum, length)


def steady_tones(rng: np.random.Generator, length: int) -> Reals:
    """One to four tones that may decay, as of a beeper."""
    pitch_hz = rng.uniform(50, 4000, size=(rng.integers(1, 5), 1))
    phase = 2 * np.pi * pitch_hz * np.arange(length) / SAMPLE_RATE_HZ + rng.uniform(0, 6, pitch_hz.shape)
    return np.sin(phase).sum(0) * np.exp(-np.arange(length) * rng.uniform(0, 5) / SAMPLE_RATE_HZ)


def gliding_chord(rng: np.random.Generator, length: int) -> Reals:
    """Three notes with partials and tremolo, gliding by up to one octave per second."""
    time = np.arange(length) / SAMPLE_RATE_HZ
    root_hz = rng.uniform(60, 600) * 2 ** (rng.uniform(-1, 1) * time)
    partials = np.outer(rng.choice([1, 1.25, 1.5, 2], 3), np.arange(1, 7)).ravel()
    phase = 2 * np.pi * np.cumsum(root_hz) / SAMPLE_RATE_HZ
    weight = rng.uniform(0, 1, len(partials)) / partials
    chord = (weight[:, None] * np.sin(partials[:, None] * phase)).sum(0)
    return chord * (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.5, 8) * time + rng.uniform(0, 6)))


def clicks(rng: np.random.Generator, length: int) -> Reals:
    """A few clicks with the same spectrum at random times."""
    noise = np.zeros(length)
    noise[rng.integers(length, size=rng.integers(1, 12))] = rng.uniform(-1, 1)
    return np.convolve(noise, rng.standard_normal(80) * np.exp(-np.arange(80) / rng.uniform(1, 30)), "same")


def struck(rng: np.random.Generator, length: int) -> Reals:
    """One blow on an object: a burst of noise and some damped modes.

    It ranges from a key (bright, some milliseconds) to a knock on a door (dark, a tenth of a second).
    Source: modal synthesis, as in van den Doel and Pai 1998, The Sounds of Physical Shapes.
    """
    size = rng.uniform()  # 0: a small, bright thing; 1: a large, dark one
    pitch_hz = np.exp(rng.uniform(np.log(900 - 820 * size), np.log(7000 - 6000 * size), (rng.integers(2, 9), 1)))
    decay_s = (0.002 + 0.08 * size * rng.uniform(0.2, 1)) * (pitch_hz.min() / pitch_hz) ** rng.uniform(0, 1)
    if rng.random() < 0.2:
        decay_s *= 6  # glass, metal
    time = np.arange(length) / SAMPLE_RATE_HZ
    modes = rng.uniform(0.2, 1, pitch_hz.shape) * np.exp(-time / decay_s)
    ringing = (modes * np.sin(2 * np.pi * pitch_hz * time + rng.uniform(0, 6, pitch_hz.shape))).sum(0)
    burst = rng.standard_normal(length) * np.exp(-time / rng.uniform(0.0005, 0.01))
    return ringing + rng.uniform(0, 1.5) * burst


def impacts(rng: np.random.Generator, length: int) -> Waveform:
    """Knocks, ticks, keys, switches: single blows, pairs or rhythms; the peak is 1."""
    kinds = [struck(rng, length) for _ in range(rng.integers(1, 3))]
    duration_s = length / SAMPLE_RATE_HZ
    pattern = rng.integers(4)
    if pattern == 0:
        times_s = rng.uniform(0, 0.5, 1)
    elif pattern == 1:  # a switch, down and up
        times_s = rng.uniform(0, 0.4) + np.array([0, rng.uniform(0.04, 0.25)])
    elif pattern == 2:  # a clock, knocks at a door
        times_s = rng.uniform(0, 0.3) + np.arange(rng.integers(2, 12)) / rng.uniform(1.5, 8)
    else:  # somebody typing
        times_s = np.cumsum(rng.exponential(rng.uniform(0.06, 0.3), rng.integers(3, 16)))
    sound = np.zeros(length)
    for number, time_s in enumerate(times_s + rng.normal(0, 0.005, len(times_s))):
        at = round(max(0.0, time_s) * SAMPLE_RATE_HZ)
        if time_s < duration_s and at < length:
            sound[at:] += rng.uniform(0.5, 1) * kinds[number % len(kinds)][: length - at]
    return (sound / (np.abs(sound).max() + 1e-9)).astype(np.float32)


def procedural_sound(seed: int) -> Waveform:
    """Two seconds of noise, tones or clicks, or with probability 0.5 of impacts; a seed always gives the same sound."""
    rng = np.random.default_rng(seed)
    maker = impacts if rng.random() < 0.5 else procedural_noise
    return 0.5 * maker(rng, 2 * SAMPLE_RATE_HZ)
