"""MFCC as a torch module that also runs inside the exported graph."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchaudio.functional import create_dct, melscale_fbanks

from speech.errors import ConfigError
from speech.segment import SAMPLE_RATE_HZ


@dataclass(frozen=True)
class FeatureConfig:
    """Settings of the MFCC; every length derives from `sample_rate_hz`."""

    sample_rate_hz: int = SAMPLE_RATE_HZ
    """Samples per second of the waveform.  A bundle carries it; only 16000 is supported."""
    window_ms: int = 25
    """Length of the Hann window."""
    hop_ms: int = 10
    """Distance between the starts of two frames."""
    n_fft: int = 512
    """Points of the Fourier transform; the window is zero-padded to it."""
    n_mels: int = 64
    """Triangular filters on the HTK mel scale."""
    n_mfcc: int = 40
    """Cepstral coefficients kept."""
    f_min_hz: float = 20.0
    """Lower edge of the lowest filter."""
    f_max_hz: float = 7600.0
    """Upper edge of the highest filter."""
    log_offset: float = 1e-6
    """Added to each mel energy before the logarithm, so that digital silence stays finite."""

    def __post_init__(self) -> None:
        if self.sample_rate_hz != SAMPLE_RATE_HZ:
            raise ConfigError(
                f"sample_rate_hz={self.sample_rate_hz}: recordings and bundles are at {SAMPLE_RATE_HZ} Hz"
            )
        for field in ("window_ms", "hop_ms"):
            if getattr(self, field) * self.sample_rate_hz % 1000:
                raise ConfigError(
                    f"{field}={getattr(self, field)} is no whole number of samples at {self.sample_rate_hz} Hz"
                )
        if not 0 < self.n_mfcc <= self.n_mels:
            raise ConfigError(f"n_mfcc={self.n_mfcc} must lie in 1..n_mels={self.n_mels}")
        if self.window > self.n_fft:
            raise ConfigError(f"n_fft={self.n_fft} is shorter than the window of {self.window} samples")
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate_hz / 2:
            raise ConfigError(
                f"f_min_hz={self.f_min_hz}, f_max_hz={self.f_max_hz} must rise within 0..{self.sample_rate_hz / 2}"
            )
        if self.log_offset <= 0:
            raise ConfigError(f"log_offset={self.log_offset} must be positive")

    @property
    def window(self) -> int:
        """Window length in samples."""
        return self.window_ms * self.sample_rate_hz // 1000

    @property
    def hop(self) -> int:
        """Hop in samples."""
        return self.hop_ms * self.sample_rate_hz // 1000

    def n_frames(self, n_samples: int) -> int:
        """Number of frames of `n_samples`: 1 + (n_samples - window) // hop, or 0 if shorter than a window."""
        return max(0, 1 + (n_samples - self.window) // self.hop)


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients without padding at the edges.

    The Fourier transform is a convolution with windowed cosines and sines.  That is one ONNX operator,
    exports exactly, and at these sizes is faster on a CPU than `torch.stft` and ONNX Runtime's STFT.

    Args of forward:
        waveform: (batch, time), float32 in -1..1, at `config.sample_rate_hz`; time >= window.
    Returns of forward:
        (batch, frames, n_mfcc), frames = 1 + (time - window) // hop.  Items of a batch are independent.

    Source: Davis and Mermelstein 1980; the settings are named as in torchaudio.
    """

    kernel: Tensor
    filters: Tensor
    dct: Tensor

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        n_bins = config.n_fft // 2 + 1
        time = torch.arange(config.window, dtype=torch.float64)
        angle = 2 * math.pi / config.n_fft * torch.arange(n_bins, dtype=torch.float64)[:, None] * time
        window = torch.hann_window(config.window, dtype=torch.float64)
        filters = melscale_fbanks(n_bins, config.f_min_hz, config.f_max_hz, config.n_mels, config.sample_rate_hz)
        used = filters.sum(1) > 0  # bins outside every filter need not be computed
        kernel = torch.cat([torch.cos(angle)[used], torch.sin(angle)[used]]) * window
        self.register_buffer("kernel", kernel[:, None].float(), persistent=False)  # (2 * bins, 1, window)
        self.register_buffer("filters", filters[used].T.contiguous(), persistent=False)  # (n_mels, bins)
        dct = create_dct(config.n_mfcc, config.n_mels, norm="ortho")
        self.register_buffer("dct", dct.T.contiguous(), persistent=False)  # (n_mfcc, n_mels)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = nn.functional.conv1d(waveform[:, None], self.kernel, stride=self.config.hop)
        real, imaginary = spectrum.chunk(2, dim=1)  # each (batch, bins, frames)
        power = real * real + imaginary * imaginary
        log_mels = torch.log(self.filters @ power + self.config.log_offset)  # (batch, n_mels, frames)
        return (self.dct @ log_mels).transpose(1, 2)  # (batch, frames, n_mfcc)
