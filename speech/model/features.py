"""MFCC as a torch module that also runs inside the exported graph."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torchaudio.functional import create_dct, melscale_fbanks

from speech.errors import ConfigError
from speech.segment import SAMPLE_RATE_HZ

WINDOW = SAMPLE_RATE_HZ * 25 // 1000
"""Samples of the Hann window: 25 ms."""
HOP = SAMPLE_RATE_HZ // 100
"""Samples between the starts of two frames: 10 ms."""
N_FFT = 512
"""Points of the Fourier transform; the window is zero-padded to it."""
N_MELS = 64
"""Triangular filters on the HTK mel scale."""
N_MFCC = 40
"""Cepstral coefficients kept."""
F_MIN_HZ, F_MAX_HZ = 20.0, 7600.0
"""Lower edge of the lowest filter and upper edge of the highest."""
LOG_OFFSET = 1e-6
"""Added to each mel power before the logarithm, so that digital silence stays finite."""
FEATURES = {
    "sample_rate_hz": SAMPLE_RATE_HZ, "window_ms": 25, "hop_ms": 10, "n_fft": N_FFT, "n_mels": N_MELS,
    "n_mfcc": N_MFCC, "f_min_hz": F_MIN_HZ, "f_max_hz": F_MAX_HZ, "log_offset": LOG_OFFSET,
}  # fmt: skip
"""The settings above, as a bundle carries them."""


def mel_of(hz: Tensor) -> Tensor:
    """Frequencies on the HTK mel scale."""
    return 2595 * torch.log10(1 + hz / 700)


def mel_edges() -> Tensor:
    """The edges and centres of the filters, evenly spaced in mel: (N_MELS + 2,); filter i is centred at i + 1."""
    low, high = mel_of(torch.tensor([F_MIN_HZ, F_MAX_HZ])).tolist()
    return torch.linspace(low, high, N_MELS + 2)


def mel_centres_hz() -> Tensor:
    """The centre of each mel filter: (N_MELS,)."""
    return 700 * (10 ** (mel_edges()[1:-1] / 2595) - 1)


@cache
def mel_filters() -> Tensor:
    """The filters over the bins of the Fourier transform: (N_FFT / 2 + 1, N_MELS)."""
    filters: Tensor = melscale_fbanks(N_FFT // 2 + 1, F_MIN_HZ, F_MAX_HZ, N_MELS, SAMPLE_RATE_HZ)
    return filters


def n_frames(n_samples: int) -> int:
    """Number of frames of `n_samples`: 1 + (n_samples - window) // hop, or 0 if shorter than a window."""
    return max(0, 1 + (n_samples - WINDOW) // HOP)


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients without padding at the edges.

    The Fourier transform is a convolution with windowed cosines and sines.  That is one ONNX operator,
    exports exactly, and at these sizes is faster on a CPU than `torch.stft` and ONNX Runtime's STFT.

    Args:
        speed: the waveform is analysed as if it were played this many times as fast, so pitch and formants rise with
            it.  The kernels change, not the waveform: `speed * WINDOW` and `speed * HOP` must be whole numbers.
    Args of forward:
        waveform: (batch, time), float32 in -1..1, at 16 kHz; time >= speed * WINDOW.
    Returns of forward:
        (batch, frames, N_MFCC), frames = 1 + (time - speed * WINDOW) // (speed * HOP).  Items of a batch are
        independent.

    Source: Davis and Mermelstein 1980; the settings are named as in torchaudio.
    """

    kernel: Tensor
    filters: Tensor
    dct: Tensor

    def __init__(self, speed: float = 1.0) -> None:
        super().__init__()
        window, self.hop = round(speed * WINDOW), round(speed * HOP)
        if not math.isclose(window, speed * WINDOW) or not math.isclose(self.hop, speed * HOP):
            raise ConfigError(f"speed={speed} gives no whole number of samples in a window or hop")
        bins = torch.arange(N_FFT // 2 + 1, dtype=torch.float64)[:, None] / speed
        angle = 2 * math.pi / N_FFT * bins * torch.arange(window, dtype=torch.float64)
        hann = torch.hann_window(window, dtype=torch.float64) / speed
        filters = mel_filters()
        # Bins outside every filter need not be computed; a slowed waveform has nothing in the highest.
        used = (filters.sum(1) > 0) & (bins[:, 0] <= N_FFT / 2)
        kernel = torch.cat([torch.cos(angle)[used], torch.sin(angle)[used]]) * hann
        self.register_buffer("kernel", kernel[:, None].float(), persistent=False)  # (2 * bins, 1, window)
        self.register_buffer("filters", filters[used].T.contiguous(), persistent=False)  # (N_MELS, bins)
        dct = create_dct(N_MFCC, N_MELS, norm="ortho")
        self.register_buffer("dct", dct.T.contiguous(), persistent=False)  # (N_MFCC, N_MELS)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = nn.functional.conv1d(waveform[:, None], self.kernel, stride=self.hop)
        real, imaginary = spectrum.chunk(2, dim=1)  # each (batch, bins, frames)
        power = real * real + imaginary * imaginary
        log_mels = torch.log(self.filters @ power + LOG_OFFSET)  # (batch, N_MELS, frames)
        return (self.dct @ log_mels).transpose(1, 2)  # (batch, frames, N_MFCC)
