import librosa
import numpy as np
import pytest
import soxr
import torch

from speech.errors import ConfigError
from speech.model.features import F_MAX_HZ, F_MIN_HZ, HOP, LOG_OFFSET, MFCC, N_FFT, N_MELS, N_MFCC, WINDOW, n_frames


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_agrees_with_librosa(level: float) -> None:
    waveform = level * noise(16000)
    padded = np.pad(waveform.numpy(), (N_FFT - WINDOW) // 2)  # librosa centres the window in n_fft
    mels = librosa.feature.melspectrogram(
        y=padded, sr=16000, n_fft=N_FFT, win_length=WINDOW, hop_length=HOP, center=False, n_mels=N_MELS, fmin=F_MIN_HZ,
        fmax=F_MAX_HZ, htk=True, norm=None,
    )  # fmt: skip
    theirs = librosa.feature.mfcc(S=np.log(mels + LOG_OFFSET), n_mfcc=N_MFCC).T
    ours = MFCC()(waveform[None])[0].numpy()
    assert ours.shape == theirs.shape == (n_frames(16000), N_MFCC) == (98, 40)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("speed", [0.85, 1.15])
def test_another_speed_is_that_of_a_resampled_waveform(speed: float) -> None:
    """Of a sound without treble, since resampling cuts it off where the kernels of a slow reading end."""
    sound = soxr.resample(soxr.resample(noise(18000).numpy(), 16000, 11000), 11000, 16000)
    played = torch.from_numpy(soxr.resample(sound, 16000 * speed, 16000, "VHQ"))
    ours, theirs = MFCC(speed)(torch.from_numpy(sound)[None])[0], MFCC()(played[None])[0]
    low = N_MFCC // 2  # the finest ripples of the spectrum are those of the band that is empty in both
    shape = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 1
    difference = (ours[2 : shape - 2] - theirs[2 : shape - 2])[:, :low].abs()
    assert difference.mean() < 0.05 * theirs[:, 1:low].std()
    plain = MFCC()(torch.from_numpy(sound)[None])[0]
    assert (plain.mean(0) - theirs.mean(0))[:low].abs().mean() > 3 * difference.mean()


def test_a_speed_without_whole_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"speed=0\.91"):
        MFCC(0.91)


def test_batch_of_many_equals_batches_of_one() -> None:
    waveforms = noise(3, 8000) * torch.tensor([[1.0], [0.0], [30.0]])
    mfcc = MFCC()
    together = mfcc(waveforms)
    for one, waveform in zip(together, waveforms, strict=True):
        torch.testing.assert_close(one, mfcc(waveform[None])[0], atol=1e-4, rtol=0)
    assert together.isfinite().all(), "also of digital silence"


def test_chunks_give_the_same_frames() -> None:
    waveform, mfcc = noise(1, 16000), MFCC()
    cut = 40  # frames
    halves = mfcc(waveform[:, : (cut - 1) * HOP + WINDOW]), mfcc(waveform[:, cut * HOP :])
    torch.testing.assert_close(torch.cat(halves, 1), mfcc(waveform), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n_samples", "frames"), [(399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)])
def test_number_of_frames(n_samples: int, frames: int) -> None:
    assert n_frames(n_samples) == frames
    if frames:
        assert MFCC()(noise(1, n_samples)).shape[1] == frames
