"""Waveforms: their level, the bounds of the sound in them, and rooms."""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from speech.segment import SAMPLE_RATE_HZ

Waveform = NDArray[np.float32]
"""(time,) samples in -1..1 at `SAMPLE_RATE_HZ`."""

FRAME = SAMPLE_RATE_HZ // 100
"""Samples over which a level is measured: 10 ms."""
SPEECH_DB = -26.0
"""RMS level of a word in a scene, relative to full scale."""
PRE_EMPHASIS = 0.9
"""Share of the previous sample that is subtracted from each one before sound is separated from noise."""
OVER_FLOOR, OVER_PEAK = 1.5, 0.03
"""The level of a sound is at least this many times the noise floor of its recording, and this part of its peak."""
ROOM_S = 0.5
"""Length of an impulse response."""


def set_level(waveform: Waveform, level_db: float) -> Waveform:
    """Scale a waveform to an RMS of `level_db` dB relative to full scale, clipped to -1..1."""
    rms = np.sqrt(np.square(waveform).mean()) + 1e-9
    return np.clip(waveform * (10 ** (level_db / 20) / rms), -1, 1)


def centred(waveform: Waveform, length: int = SAMPLE_RATE_HZ) -> Waveform:
    """The waveform centred in `length` samples: zeros around a shorter one, the middle of a longer one."""
    if len(waveform) >= length:
        start = (len(waveform) - length) // 2
        return waveform[start : start + length]
    left = (length - len(waveform)) // 2
    return np.pad(waveform, (left, length - len(waveform) - left))


def loud_frames(waveform: Waveform) -> NDArray[np.bool_]:
    """Which frames of 10 ms are above the recording's own noise floor: (samples,) -> (samples // FRAME,).

    Pre-emphasis raises the weak ends of "off" and "left" above it; a click is too short to count as its peak.
    """
    emphasised = waveform - PRE_EMPHASIS * np.pad(waveform, (1, 0))[:-1]
    power = np.square(emphasised[: len(emphasised) // FRAME * FRAME].reshape(-1, FRAME)).mean(1)
    if len(power) < 3:
        return np.ones(len(power), bool)
    level = np.sqrt(np.convolve(power, np.ones(3) / 3, "same"))
    floor, peak = np.quantile(level, [0.1, 0.95])
    return level > max(OVER_FLOOR * floor, OVER_PEAK * peak)


def extent(waveform: Waveform) -> tuple[int, int]:
    """First sample, and one past the last, above the recording's noise floor; the whole recording if none is."""
    loud = np.flatnonzero(loud_frames(waveform))
    if len(waveform) < 3 * FRAME or not len(loud):
        return 0, len(waveform)
    return int(loud[0]) * FRAME, int(loud[-1] + 1) * FRAME


def room_response(recording: Waveform) -> Waveform:
    """An impulse response of at most `ROOM_S` that begins with the direct sound and has unit energy."""
    response = recording[int(np.abs(recording).argmax()) :][: round(ROOM_S * SAMPLE_RATE_HZ)]
    return response / np.linalg.norm(response)


def reverberate(waveform: Waveform, response: Waveform) -> Waveform:
    """Convolve a waveform (time,) with a room's impulse response (taps,); length and energy are kept."""
    wet = fftconvolve(waveform, response)[: len(waveform)]
    scale = np.sqrt(np.square(waveform).sum() / (np.square(wet).sum() + 1e-10))
    return (wet * scale).astype(np.float32)
