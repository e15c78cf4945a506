"""Augmentation of composed examples: noise, microphone, level and masks, all on mel power.

Everything is computed for the whole batch at once, on its device.  The random generator is an argument.
"""

import torch
from torch import Generator, Tensor

from speech.model.features import LOG_OFFSET, mel_centres_hz

NOISY, SNR_DB = 0.7, (-3.0, 35.0)
"""Share of examples with noise, and the range of its SNR; the signal's power is that of its loudest frames."""
FAINT, FAINT_SNR_DB = 0.15, (35.0, 60.0)
"""Share of examples with barely audible noise, as in a quiet room; the rest get none."""
LOUD_FRAMES = 25
"""Most frames that give the signal's power: the loudest 250 ms, or a third of a short example."""
GAIN_DB = (-30.0, 12.0)
"""Range of the level of an example, relative to the nominal one."""
TILT, TILT_DB = 0.5, 4.0
"""Share of examples whose spectrum is tilted, and the steepest tilt per octave."""
PEAKS, PEAK_DB = 0.5, 8.0
"""Share of examples filtered by an equaliser with three broad peaks or dips, and their largest height."""
MUFFLED, MUFFLED_HZ = 0.16, (700.0, 4000.0)
"""Share of examples without treble, and the range of the frequency above which it falls, by 12 to 40 dB an octave."""
THIN, THIN_HZ = 0.15, (80.0, 400.0)
"""Share of examples without bass, and the range of the frequency below which it falls, by 6 to 24 dB an octave."""
NARROW, NARROW_HZ = 0.12, (3000.0, 7000.0)
"""Share of examples without the upper band, as over a telephone, and the range of its lower edge."""
BRICK_WALL_DB = 100.0
"""Slope per octave above the edge of a narrow band."""
FLOOR_DB = (0.0, 10.0)
"""Range of the noise of the microphone itself, relative to `LOG_OFFSET`."""
TIME_MASK, MEL_MASK = 10, 8
"""Longest masked run of frames, and largest number of neighbouring bands masked; two of each."""


class Augment:
    """Turns composed examples into log mel pictures as a microphone would have recorded them.

    Args:
        strength: 0..1, of everything but the level; 1: as above; 0: only the level and the microphone's own noise.
        generator: source of all randomness, on the device of the examples.
    """

    def __init__(self, strength: float, generator: Generator) -> None:
        self.strength, self.generator = strength, generator
        self.octaves = (mel_centres_hz() / 1000).log2().to(generator.device)[None]  # above 1 kHz

    def _between(self, n: int, low: float, high: float) -> Tensor:
        return torch.empty(n, 1, device=self.octaves.device).uniform_(low, high, generator=self.generator)

    def _chosen(self, n: int, share: float) -> Tensor:
        return self._between(n, 0, 1) < share * self.strength

    def __call__(self, power: Tensor, noise: Tensor, sounding: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            power, noise: (batch, frames, N_MELS) mel power.
            sounding: (batch,) bool; the others keep their level and get no noise.
        Returns:
            (batch, frames, N_MELS) log mel power, with `LOG_OFFSET` added before the logarithm.
        """
        n, sounding = len(power), sounding[:, None]
        power = power + noise * (self._noise_gain(power, noise) * sounding)[:, :, None]
        gain_db = self._between(n, *GAIN_DB) * sounding
        power = power * 10 ** ((self._microphone(n).clamp(-60, 40) + gain_db) / 10)[:, None]
        floor = LOG_OFFSET * (10 ** (self._between(n, *FLOOR_DB) / 10) - 1)
        return self._masked(torch.log(power + floor[:, :, None] + LOG_OFFSET))

    def _noise_gain(self, power: Tensor, noise: Tensor) -> Tensor:
        """(batch, 1) gain of the noise in power."""
        n, loudest = len(power), max(1, min(LOUD_FRAMES, power.shape[1] // 3))
        drawn = self._between(n, 0, 1)
        is_noisy = drawn < NOISY * self.strength
        snr_db = torch.where(is_noisy, self._between(n, *SNR_DB), self._between(n, *FAINT_SNR_DB))
        loud = power.sum(2).topk(loudest, 1).values.mean(1, keepdim=True)
        gain = loud / (noise.sum(2).mean(1, keepdim=True) + 1e-9) * 10 ** (-snr_db / 10)
        return gain.clamp(max=1e6) * (is_noisy | (drawn > 1 - FAINT))

    def _microphone(self, n: int) -> Tensor:
        """(n, N_MELS) gain of each example's random microphone in dB."""
        octave = self.octaves

        def beyond(limits_hz: tuple[float, float], share: float, slope_db: Tensor | float, side: int) -> Tensor:
            edge = (self._between(n, *limits_hz) / 1000).log2()
            return (side * (octave - edge)).clamp(min=0) * -slope_db * self._chosen(n, share)

        curve = self._between(n, -TILT_DB, TILT_DB) * self._chosen(n, TILT) * octave
        has_peaks = self._chosen(n, PEAKS)
        for _ in range(3):
            distance = (octave - self._between(n, -3.3, 3)) / self._between(n, 0.3, 1.2)
            curve = curve + self._between(n, -PEAK_DB, PEAK_DB) * has_peaks * torch.exp(-0.5 * distance.square())
        curve = curve + beyond(MUFFLED_HZ, MUFFLED, self._between(n, 12, 40), 1)
        curve = curve + beyond(THIN_HZ, THIN, self._between(n, 6, 24), -1)
        return curve + beyond(NARROW_HZ, NARROW, BRICK_WALL_DB, 1)

    def _masked(self, picture: Tensor) -> Tensor:
        """Replace runs of frames and of bands by the mean over time."""
        n, mean = len(picture), picture.mean(1, keepdim=True)
        for axis, longest in ((1, TIME_MASK), (1, TIME_MASK), (2, MEL_MASK), (2, MEL_MASK)):
            size = picture.shape[axis]
            width = self._between(n, 0, longest * self.strength + 1).floor()
            start = (self._between(n, 0, 1) * (size - width)).floor()
            position = torch.arange(size, device=picture.device)
            masked = (position >= start) & (position < start + width)  # (n, size)
            picture = torch.where(masked[:, :, None] if axis == 1 else masked[:, None], mean, picture)
        return picture
