"""Augmentation of a batch of waveforms and of its features.  The random generator is an argument.

Everything is computed for the whole batch at once, on the device of the waveforms.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from recipes.data.clips import FRAME, SAMPLE_RATE_HZ
from speech.errors import ConfigError
from speech.segment import CUTOFF_HZ

CURVE_POINTS = 257
"""Points of a microphone's response, evenly spaced from 0 to 8 kHz; linear interpolation in between."""
LOUD_FRAMES = 25
"""Frames that give the signal's power in the SNR: the loudest 250 ms, or a third of a waveform under 750 ms."""
DEEPEST_DB = -70.0
"""Lowest gain of a microphone's response; its negative is the highest."""
BRICK_WALL_DB = 400.0
"""Slope per octave above the upper edge of a narrow band."""
FFT_STEP = 2048
"""FFT lengths are multiples of this, so that few different lengths occur."""
MOST_GAIN = 100.0
"""Largest gain applied to restore a waveform's level."""


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly training examples are augmented."""

    gain_db: tuple[float, float] = (-24.0, 12.0)
    """Range of the gain of an example."""
    noisy: float = 0.75
    """Share of examples that get noise."""
    snr_db: tuple[float, float] = (-3.0, 35.0)
    """Range of the SNR; the signal's power is that of its loudest quarter of a second."""
    faint: float = 0.15
    """Share of examples with barely audible noise, as in a quiet room; the rest get none."""
    faint_snr_db: tuple[float, float] = (35.0, 60.0)
    """Range of the SNR of faint noise."""
    roomy: float = 0.35
    """Share of examples with reverberation."""
    tilt: float = 0.5
    """Share of examples whose spectrum is tilted."""
    tilt_db: float = 4.0
    """Steepest tilt per octave, up or down."""
    peaks: float = 0.5
    """Share of examples filtered by an equaliser with three broad peaks or dips."""
    peak_db: float = 8.0
    """Largest height of a peak and depth of a dip."""
    muffled: float = 0.12
    """Share of examples without treble."""
    muffled_hz: tuple[float, float] = (700.0, 4000.0)
    """Range of the frequency above which the treble falls off."""
    thin: float = 0.15
    """Share of examples without bass."""
    thin_hz: tuple[float, float] = (80.0, 400.0)
    """Range of the frequency below which the bass falls off."""
    narrow: float = 0.12
    """Share of examples without the upper band, as over a telephone or a headset's radio link."""
    narrow_hz: tuple[float, float] = (3000.0, 7000.0)
    """Range of the upper edge of the remaining band."""
    stretch: float = 0.15
    """Largest relative change of tempo.  It is applied to the features, so the pitch does not change."""
    colour: float = 0.5
    """Standard deviation of a constant offset on the coefficients, as by another microphone; smaller on higher ones."""
    time_mask: int = 10
    """Longest masked run of frames."""
    coefficient_mask: int = 6
    """Largest number of neighbouring coefficients masked."""

    def __post_init__(self) -> None:
        for field in ("noisy", "faint", "roomy", "tilt", "peaks", "muffled", "thin", "narrow"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..1")
        if self.noisy + self.faint > 1:
            raise ConfigError(f"noisy={self.noisy} and faint={self.faint} must not exceed 1 together")
        if not 0 <= self.stretch < 0.5:
            raise ConfigError(f"stretch={self.stretch} must lie in 0..0.5")


def uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """(n, 1) uniform numbers on the device of `like`."""
    return torch.empty(n, 1, device=like.device).uniform_(low, high, generator=generator)


def warp(signal: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Speed up `signal` (batch, time[, n]) by `factor` (batch, 1) about its middle and delay it by `shift` samples.

    Linear interpolation; zeros outside the signal.
    """
    time = signal.shape[1]
    middle = (time - 1) / 2
    place = middle + (torch.arange(time, device=signal.device) - middle - shift) * factor  # (batch, time)
    inside = (place >= 0) & (place <= time - 1)
    low = place.clamp(0, time - 2).long()
    weight = (place - low).clamp(0, 1)
    if signal.ndim == 3:
        low, weight, inside = (x[:, :, None].expand(-1, -1, signal.shape[2]) for x in (low, weight, inside))
    warped = signal.gather(1, low) * (1 - weight) + signal.gather(1, low + 1) * weight
    return warped * inside


def speech_power(waveform: Tensor) -> Tensor:
    """(batch, 1) mean power of the loudest `LOUD_FRAMES` frames of each waveform, or of a third if it is short."""
    frames = waveform.unfold(1, FRAME, FRAME).square().mean(2)
    loudest = max(1, min(LOUD_FRAMES, frames.shape[1] // 3))
    return frames.topk(loudest, dim=1).values.mean(1, keepdim=True)


def noise_gain(waveform: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """Gain (batch, 1) that puts `noise` (batch, time) `snr_db` (batch, 1) below the waveform's loud parts."""
    wanted = speech_power(waveform) / 10 ** (snr_db / 10)
    return (wanted / (noise.square().mean(1, keepdim=True) + 1e-10)).sqrt().clamp(max=1e3)


def add_noise(waveform: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """Mix in `noise` (batch, time), `snr_db` (batch, 1) below the waveform's loud parts."""
    return waveform + noise * noise_gain(waveform, noise, snr_db)


def reverberate(waveform: Tensor, response: Tensor) -> Tensor:
    """Convolve each waveform (batch, time) with its room's impulse response (batch, taps); the level is kept."""
    n = waveform.shape[1] + response.shape[1]
    wet = torch.fft.irfft(torch.fft.rfft(waveform, n) * torch.fft.rfft(response, n), n)[:, : waveform.shape[1]]
    scale = (waveform.square().sum(1) / (wet.square().sum(1) + 1e-10)).sqrt()
    return wet * scale[:, None]


def live_response(points: int, device: torch.device) -> Tensor:
    """(points // 2 + 1,) gain of the live loop's high-pass at each frequency of an FFT; its phase is left out.

    Source: Butterworth's magnitude of order 4 after the bilinear transform, as in `speech.segment`.
    """
    angle = torch.linspace(0, math.pi / 2, points // 2 + 1, dtype=torch.float64)[:-1]
    ratio = torch.tan(angle) / math.tan(math.pi * CUTOFF_HZ / SAMPLE_RATE_HZ)
    gain = ratio**4 / torch.sqrt(1 + ratio**8)
    return torch.cat([gain, torch.ones(1, dtype=torch.float64)]).float().to(device)


def as_heard_live(waveform: Tensor) -> Tensor:
    """Filter waveforms (batch, time) with the high-pass that the live loop applies first."""
    time = waveform.shape[1]
    points = -(-(time + FFT_STEP) // FFT_STEP) * FFT_STEP
    spectrum = torch.fft.rfft(waveform, points) * live_response(points, waveform.device)
    return torch.fft.irfft(spectrum, points)[:, :time]


class Augment:
    """Augment a batch of waveforms and its features.

    Args:
        config: how strongly.
        rooms: (rooms, taps) impulse responses that begin with the direct sound; may be empty.
        generator: source of all randomness.
    """

    def __init__(self, config: AugmentConfig, rooms: Tensor, generator: Generator) -> None:
        self.config, self.generator = config, generator
        taps = rooms.shape[1] if len(rooms) else 1
        none = torch.zeros(1, taps, device=rooms.device)
        none[0, 0] = 1.0
        self.rooms = torch.cat([none, rooms]) if len(rooms) else none
        """(1 + rooms, taps); the first one is no room at all."""
        self._spectra: dict[int, Tensor] = {}
        self._high_pass: dict[int, Tensor] = {}

    def _chosen(self, n: int, probability: float, like: Tensor) -> Tensor:
        return uniform(n, 0, 1, like, self.generator) < probability  # (n, 1)

    def _between(self, n: int, limits: tuple[float, float], like: Tensor) -> Tensor:
        return uniform(n, *limits, like, self.generator)

    def waveform(self, waveform: Tensor, noise: Tensor, sounding: Tensor) -> Tensor:
        """Apply room, noise, gain, the microphone (tilt, equaliser, low-pass, high-pass), the live high-pass, clipping.

        Args:
            waveform, noise: (batch, time).
            sounding: (batch,) bool, true for a sound; the others keep their level and get neither room nor noise.
        """
        n, time = waveform.shape
        sounding = sounding[:, None]
        points = -(-(time + self.rooms.shape[1]) // FFT_STEP) * FFT_STEP
        gain = 10 ** (self._between(n, self.config.gain_db, waveform) * sounding / 20)
        level = self._noise_level(waveform, noise, sounding)
        dry = torch.fft.rfft(waveform, points)
        wet = dry * self._room_spectrum(points)[self._room_numbers(sounding)]
        wet = wet * keep_level(dry, wet)
        mixed = (wet + level * torch.fft.rfft(noise, points)) * gain
        heard = mixed * self._response(n, points, waveform)
        heard = heard * keep_level(mixed, heard) * self._live(points, waveform.device)
        return torch.fft.irfft(heard, points)[:, :time].clamp(-1, 1)

    def _live(self, points: int, device: torch.device) -> Tensor:
        """`live_response`, cached: (points // 2 + 1,)."""
        if points not in self._high_pass:
            self._high_pass[points] = live_response(points, device)
        return self._high_pass[points]

    def _noise_level(self, waveform: Tensor, noise: Tensor, sounding: Tensor) -> Tensor:
        """(batch, 1) gain of the noise, before the gain of the mixture."""
        config, n = self.config, len(waveform)
        drawn = uniform(n, 0, 1, waveform, self.generator)
        snr_db = torch.where(
            drawn < config.noisy,
            self._between(n, config.snr_db, waveform),
            self._between(n, config.faint_snr_db, waveform),
        )
        heard = (drawn < config.noisy + config.faint) & sounding
        return noise_gain(waveform, noise, snr_db) * heard

    def _room_numbers(self, sounding: Tensor) -> Tensor:
        """(batch,) index of each example's room, 0 for none."""
        n, rooms = len(sounding), len(self.rooms) - 1
        number = 1 + torch.randint(max(1, rooms), (n, 1), generator=self.generator, device=sounding.device)
        chosen = self._chosen(n, self.config.roomy if rooms else 0.0, number) & sounding
        return (number * chosen).squeeze(1)

    def _room_spectrum(self, points: int) -> Tensor:
        """Spectra of the rooms, cached: (1 + rooms, points // 2 + 1)."""
        if points not in self._spectra:
            self._spectra[points] = torch.fft.rfft(self.rooms, points)
        return self._spectra[points]

    def _response(self, n: int, points: int, like: Tensor) -> Tensor:
        """(n, points // 2 + 1) gain of each example's random microphone at each frequency."""
        config, generator = self.config, self.generator
        frequency_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, CURVE_POINTS, device=like.device).clamp(min=20.0)
        octave = (frequency_hz / 1000).log2()[None]  # above 1 kHz

        def beyond(limits_hz: tuple[float, float], share: float, slope_db: Tensor | float, side: int) -> Tensor:
            edge = (self._between(n, limits_hz, like) / 1000).log2()
            return (side * (octave - edge)).clamp(min=0) * -slope_db * self._chosen(n, share, like)

        tilt_db = uniform(n, -config.tilt_db, config.tilt_db, like, generator) * self._chosen(n, config.tilt, like)
        curve_db = tilt_db * octave
        has_peaks = self._chosen(n, config.peaks, like)
        for _ in range(3):
            height_db = uniform(n, -config.peak_db, config.peak_db, like, generator) * has_peaks
            distance = (octave - uniform(n, -3.3, 3.0, like, generator)) / uniform(n, 0.3, 1.2, like, generator)
            curve_db = curve_db + height_db * torch.exp(-0.5 * distance.square())
        curve_db = curve_db + beyond(config.muffled_hz, config.muffled, uniform(n, 12, 40, like, generator), 1)
        curve_db = curve_db + beyond(config.thin_hz, config.thin, uniform(n, 6, 24, like, generator), -1)
        curve_db = curve_db + beyond(config.narrow_hz, config.narrow, BRICK_WALL_DB, 1)
        curve = 10 ** (curve_db.clamp(DEEPEST_DB, -DEEPEST_DB) / 20)
        size = points // 2 + 1
        return torch.nn.functional.interpolate(curve[:, None], size, mode="linear", align_corners=True).squeeze(1)

    def features(self, features: Tensor) -> Tensor:
        """Change tempo and microphone colour of (batch, frames, n_mfcc), then mask with the item's mean over time."""
        config, generator = self.config, self.generator
        n, frames, n_mfcc = features.shape
        edge = features[:, :1]
        factor = 1 + uniform(n, -config.stretch, config.stretch, features, generator)
        features = warp(features - edge, factor, torch.zeros_like(factor)) + edge
        colour = torch.randn(n, 1, n_mfcc, device=features.device, generator=generator) * config.colour
        features = features + colour / (1 + torch.arange(n_mfcc, device=features.device) / 4)
        mean = features.mean(1, keepdim=True)
        for axis, longest in ((1, config.time_mask), (1, config.time_mask), (2, config.coefficient_mask)):
            size = (frames, n_mfcc)[axis - 1]
            length = uniform(n, 0, longest + 1, features, generator).floor()
            start = (uniform(n, 0, 1, features, generator) * (size - length)).floor()
            position = torch.arange(size, device=features.device)
            masked = (position >= start) & (position < start + length)  # (n, size)
            features = torch.where(masked[:, :, None] if axis == 1 else masked[:, None], mean, features)
        return features


def keep_level(before: Tensor, after: Tensor) -> Tensor:
    """Gain (batch, 1) that gives the spectra `after` the energy of `before`; both (batch, bins).

    The first and last bin are weighted twice as much as they should be, which does not matter here.
    """
    energy = [torch.view_as_real(x).square().sum((1, 2)) for x in (before, after)]
    return (energy[0] / (energy[1] + 1e-10)).sqrt().clamp(max=MOST_GAIN)[:, None]


def impulse_responses(recordings: list[Tensor], taps: int = 8000) -> Tensor:
    """Stack rooms as (rooms, taps); each begins at its direct sound and has unit energy."""
    trimmed = []
    for response in recordings:
        direct = response[int(response.abs().argmax()) :][:taps]
        trimmed.append(torch.nn.functional.pad(direct, (0, taps - len(direct))) / direct.norm())
    return torch.stack(trimmed) if trimmed else torch.zeros(0, taps)
