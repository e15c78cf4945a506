import librosa
import numpy as np
import pytest
import torch

from speech.errors import ConfigError
from speech.model.features import MFCC, FeatureConfig

CONFIG = FeatureConfig()


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_agrees_with_librosa(level: float) -> None:
    waveform = level * noise(16000)
    padded = np.pad(waveform.numpy(), (CONFIG.n_fft - CONFIG.window) // 2)  # librosa centres the window in n_fft
    mels = librosa.feature.melspectrogram(
        y=padded, sr=16000, n_fft=CONFIG.n_fft, win_length=CONFIG.window, hop_length=CONFIG.hop, center=False,
        n_mels=CONFIG.n_mels, fmin=CONFIG.f_min_hz, fmax=CONFIG.f_max_hz, htk=True, norm=None,
    )  # fmt: skip
    theirs = librosa.feature.mfcc(S=np.log(mels + CONFIG.log_offset), n_mfcc=CONFIG.n_mfcc).T
    ours = MFCC(CONFIG)(waveform[None])[0].numpy()
    assert ours.shape == theirs.shape == (CONFIG.n_frames(16000), CONFIG.n_mfcc)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_batch_of_many_equals_batches_of_one() -> None:
    waveforms = noise(3, 8000) * torch.tensor([[1.0], [0.0], [30.0]])
    mfcc = MFCC(CONFIG)
    together = mfcc(waveforms)
    for one, waveform in zip(together, waveforms, strict=True):
        torch.testing.assert_close(one, mfcc(waveform[None])[0], atol=1e-4, rtol=0)


def test_digital_silence_is_finite() -> None:
    assert MFCC(CONFIG)(torch.zeros(1, 16000)).isfinite().all()


def test_chunks_give_the_same_frames() -> None:
    waveform, mfcc = noise(1, 16000), MFCC(CONFIG)
    whole = mfcc(waveform)
    cut = 40  # frames
    first = mfcc(waveform[:, : (cut - 1) * CONFIG.hop + CONFIG.window])
    second = mfcc(waveform[:, cut * CONFIG.hop :])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n_samples", "n_frames"), [(399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)])
def test_number_of_frames(n_samples: int, n_frames: int) -> None:
    assert CONFIG.n_frames(n_samples) == n_frames
    if n_frames:
        assert MFCC(CONFIG)(noise(1, n_samples)).shape[1] == n_frames


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_mfcc", 65), ("n_fft", 256), ("f_max_hz", 9000.0), ("log_offset", 0.0), ("sample_rate_hz", 22050)],
)
def test_bad_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        FeatureConfig(**{field: value})
