"""Variation for training: on a batch of waveforms, then on its features.  Randomness is passed in."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from speech.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """How far training examples are varied."""

    shift_ms: float = 100.0
    """Largest shift in time, either way."""
    speed: float = 0.12
    """Largest relative change of speed, which moves pitch and formants along."""
    speed_rare: float = 0.2
    """The same for classes with few speakers."""
    gain_db: tuple[float, float] = (-24.0, 8.0)
    """Range of the gain."""
    noisy: float = 0.75
    """Share of examples that get noise."""
    snr_db: tuple[float, float] = (0.0, 35.0)
    """Range of the ratio of the word's loud parts to the noise."""
    roomy: float = 0.25
    """Share of examples that are heard in a room."""
    narrow: float = 0.0
    """Share of examples without the upper band, as over a telephone or a headset's radio link."""
    narrow_hz: tuple[float, float] = (3000.0, 7000.0)
    """Range of where that band ends."""
    muted: float = 0.15
    """Share of examples whose beginning is silenced, as the live loop does behind a detected word."""
    stretch: float = 0.15
    """Largest relative change of tempo, on the features: pitch stays."""
    colour: float = 1.5
    """Standard deviation of a constant offset on the low coefficients: another microphone."""
    time_mask: int = 10
    """Longest masked run of frames."""
    coefficient_mask: int = 6
    """Most coefficients masked at once."""

    def __post_init__(self) -> None:
        for field in ("noisy", "roomy", "narrow", "muted"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..1")
        for field in ("speed", "speed_rare", "stretch"):
            if not 0 <= getattr(self, field) < 0.5:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..0.5")


def uniform(n: int, low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """(n, 1) uniform numbers on the device of `like`."""
    return torch.empty(n, 1, device=like.device).uniform_(low, high, generator=generator)


def warp(signal: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Play `signal` (batch, time, ...) `factor` (batch, 1) times as fast about its middle, `shift` samples later.

    Linear interpolation; zeros where the signal has nothing.
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
    """(batch, 1) mean power of the louder third of each waveform's 10-ms pieces."""
    pieces = waveform.unfold(1, 160, 160).square().mean(2)
    return pieces.topk(max(1, pieces.shape[1] // 3), dim=1).values.mean(1, keepdim=True)


def add_noise(waveform: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """`noise` (batch, time) mixed in, `snr_db` (batch, 1) below the waveform's loud parts."""
    noise_power = noise.square().mean(1, keepdim=True)
    wanted = speech_power(waveform) / 10 ** (snr_db / 10)
    return waveform + noise * (wanted / (noise_power + 1e-10)).sqrt().clamp(max=1e3)


def reverberate(waveform: Tensor, response: Tensor) -> Tensor:
    """Each waveform (batch, time) heard through its room (batch, taps); the level is kept."""
    n = waveform.shape[1] + response.shape[1]
    wet = torch.fft.irfft(torch.fft.rfft(waveform, n) * torch.fft.rfft(response, n), n)[:, : waveform.shape[1]]
    scale = (waveform.square().sum(1) / (wet.square().sum(1) + 1e-10)).sqrt()
    return wet * scale[:, None]


class Augment:
    """Vary a batch of waveforms and of features.

    Args:
        config: how far.
        rooms: (rooms, taps) impulse responses that begin with the direct sound; may be empty.
        generator: source of all randomness.
    """

    def __init__(self, config: AugmentConfig, rooms: Tensor, generator: Generator) -> None:
        self.config, self.rooms, self.generator = config, rooms, generator

    def _chosen(self, n: int, probability: float, like: Tensor) -> Tensor:
        return uniform(n, 0, 1, like, self.generator) < probability  # (n, 1)

    def waveform(self, waveform: Tensor, noise: Tensor, spoken: Tensor, rare: Tensor) -> Tensor:
        """Shift, speed, room, gain, noise, narrow band, clipping, muted beginning.

        Args:
            waveform, noise: (batch, time).
            spoken: (batch,) bool: it holds speech; the rest (silence) keeps its level and gets no other noise.
            rare: (batch,) bool: vary its speed by `speed_rare`.
        """
        config, generator, n = self.config, self.generator, len(waveform)
        spoken, rare = spoken[:, None], rare[:, None]
        limit = torch.where(rare, config.speed_rare, config.speed)
        factor = 1 + limit * uniform(n, -1, 1, waveform, generator)
        shift = uniform(n, -16 * config.shift_ms, 16 * config.shift_ms, waveform, generator)
        waveform = self._rooms(warp(waveform, factor, shift), spoken)
        gain_db = uniform(n, *config.gain_db, waveform, generator) * spoken
        waveform = waveform * 10 ** (gain_db / 20)
        snr_db = uniform(n, *config.snr_db, waveform, generator)
        noisy = self._chosen(n, config.noisy, waveform) & spoken
        waveform = torch.where(noisy, add_noise(waveform, noise, snr_db), waveform)
        return self._mute_beginning(self._narrow(waveform).clamp(-1, 1))

    def _narrow(self, waveform: Tensor) -> Tensor:
        n, time = waveform.shape
        chosen = self._chosen(n, self.config.narrow, waveform)
        end_hz = uniform(n, *self.config.narrow_hz, waveform, self.generator)[chosen][:, None]
        if not len(end_hz):
            return waveform
        rows = chosen.squeeze(1).nonzero().squeeze(1)
        spectrum = torch.fft.rfft(waveform[rows])
        frequency_hz = torch.linspace(0, 8000, spectrum.shape[1], device=waveform.device)  # 16 kHz audio
        return waveform.index_copy(0, rows, torch.fft.irfft(spectrum * (frequency_hz < end_hz), time))

    def _rooms(self, waveform: Tensor, spoken: Tensor) -> Tensor:
        if not len(self.rooms):
            return waveform
        chosen = (self._chosen(len(waveform), self.config.roomy, waveform) & spoken).squeeze(1).nonzero().squeeze(1)
        if not len(chosen):
            return waveform
        which = torch.randint(len(self.rooms), (len(chosen),), generator=self.generator, device=waveform.device)
        return waveform.index_copy(0, chosen, reverberate(waveform[chosen], self.rooms[which]))

    def _mute_beginning(self, waveform: Tensor) -> Tensor:
        """Silence a beginning that holds at most 2 % of the energy, so that no word is cut."""
        n, time = waveform.shape
        energy = waveform.square().cumsum(1)
        free = (energy < 0.02 * energy[:, -1:]).sum(1, keepdim=True)
        end = free * uniform(n, 0, 1, waveform, self.generator) * self._chosen(n, self.config.muted, waveform)
        return waveform * (torch.arange(time, device=waveform.device) >= end)

    def features(self, features: Tensor) -> Tensor:
        """Tempo, microphone and masks on (batch, frames, n_mfcc); masked values take the item's mean."""
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


def impulse_responses(recordings: list[Tensor], taps: int = 8000) -> Tensor:
    """Rooms as (rooms, taps), each beginning at its direct sound with unit energy."""
    trimmed = []
    for response in recordings:
        direct = response[int(response.abs().argmax()) :][:taps]
        trimmed.append(torch.nn.functional.pad(direct, (0, taps - len(direct))) / direct.norm())
    return torch.stack(trimmed) if trimmed else torch.zeros(0, taps)
