import pytest
import torch

from speech.errors import ConfigError
from speech.training.augment import (
    Augment,
    AugmentConfig,
    add_noise,
    impulse_responses,
    reverberate,
    speech_power,
    warp,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_warp_by_one_changes_nothing() -> None:
    signal = torch.randn(3, 1000, generator=generator())
    torch.testing.assert_close(warp(signal, torch.ones(3, 1), torch.zeros(3, 1)), signal)


def test_warp_shifts_later_and_fills_with_zeros() -> None:
    signal = torch.randn(1, 100, generator=generator())
    moved = warp(signal, torch.ones(1, 1), torch.full((1, 1), 7.0))
    torch.testing.assert_close(moved[:, 7:], signal[:, :-7])
    assert not moved[:, :7].any()


def test_warp_raises_the_pitch() -> None:
    signal = torch.sin(2 * torch.pi * 500 / 16000 * torch.arange(16000.0))[None]
    spectrum = torch.fft.rfft(warp(signal, torch.full((1, 1), 1.2), torch.zeros(1, 1))).abs()[0]
    assert abs(int(spectrum.argmax()) - 600) <= 1


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_comes_at_the_ratio_asked_for(snr_db: float) -> None:
    waveform, noise = torch.randn(2, 4, 16000, generator=generator())
    added = add_noise(waveform, 0.01 * noise, torch.full((4, 1), snr_db)) - waveform
    measured = 10 * torch.log10(speech_power(waveform)[:, 0] / added.square().mean(1))
    torch.testing.assert_close(measured, torch.full((4,), snr_db), atol=0.1, rtol=0)


def test_reverberation_is_a_convolution() -> None:
    waveform, response = torch.randn(1, 300, generator=generator()), torch.zeros(1, 50)
    response[0, 10] = 2.0
    wet = reverberate(waveform, response)[0]
    assert not wet[:10].abs().gt(1e-4).any()
    correlation = torch.corrcoef(torch.stack([wet[10:], waveform[0, :-10]]))[0, 1]
    assert correlation > 0.9999


def test_rooms_begin_at_the_direct_sound() -> None:
    response = torch.zeros(500)
    response[100], response[200] = 1.0, 0.5
    rooms = impulse_responses([response], taps=300)
    assert rooms.shape == (1, 300)
    assert rooms[0].argmax() == 0
    torch.testing.assert_close(rooms.norm(dim=1), torch.ones(1))


def test_the_seed_decides_everything() -> None:
    waveform, noise = torch.randn(2, 8, 16000, generator=generator())
    spoken, rare = torch.ones(8, dtype=torch.bool), torch.arange(8) % 2 == 0
    rooms = torch.randn(3, 100, generator=generator())

    def vary(seed: int) -> torch.Tensor:
        return Augment(AugmentConfig(), rooms, generator(seed)).waveform(0.1 * waveform, noise, spoken, rare)

    torch.testing.assert_close(vary(1), vary(1))
    assert not torch.allclose(vary(1), vary(2))
    assert vary(1).abs().max() <= 1


def test_silence_keeps_its_level() -> None:
    waveform, noise = 0.01 * torch.randn(2, 8, 16000, generator=generator())
    config = AugmentConfig(muted=0.0, shift_ms=0.0, speed=0.0)
    nobody = torch.zeros(8, dtype=torch.bool)
    varied = Augment(config, torch.zeros(0, 10), generator()).waveform(waveform, noise, nobody, nobody)
    torch.testing.assert_close(varied, waveform)


def test_masks_put_the_mean() -> None:
    features = torch.randn(4, 98, 40, generator=generator())
    config = AugmentConfig(stretch=0.0, colour=0.0)
    varied = Augment(config, torch.zeros(0, 10), generator(5)).features(features)
    changed = (varied - features).abs() > 1e-4
    assert 0 < changed.float().mean() < 0.5
    mean = features.mean(1, keepdim=True).expand_as(features)
    masked_once = changed & ((varied - mean).abs() < 1e-4)
    assert masked_once.sum() > 0.5 * changed.sum()  # the rest is masked twice: the mean of a masked item


def test_bad_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"noisy=1\.5"):
        AugmentConfig(noisy=1.5)


def test_a_narrow_band_ends_where_it_should() -> None:
    noise = 0.01 * torch.randn(8, 16000, generator=generator())
    config = AugmentConfig(muted=0.0, shift_ms=0.0, speed=0.0, narrow=0.5, narrow_hz=(4000.0, 4000.0))
    nobody = torch.zeros(8, dtype=torch.bool)
    varied = Augment(config, torch.zeros(0, 10), generator()).waveform(noise, noise, nobody, nobody)
    power = torch.fft.rfft(varied).abs().square()  # one bin is one hertz
    upper = power[:, 4010:].sum(1) / power[:, :3990].sum(1)
    narrowed = upper < 1e-3
    assert 0 < narrowed.sum() < 8
    torch.testing.assert_close(varied[~narrowed], noise[~narrowed])


def test_a_batch_of_which_none_is_in_a_room_stays_as_it_is() -> None:
    waveform = 0.01 * torch.randn(2, 16000, generator=generator())
    config = AugmentConfig(roomy=0.0, narrow=0.0, muted=0.0, shift_ms=0.0, speed=0.0, noisy=0.0, gain_db=(0.0, 0.0))
    everybody = torch.ones(2, dtype=torch.bool)
    varied = Augment(config, torch.ones(3, 100), generator()).waveform(waveform, waveform, everybody, ~everybody)
    torch.testing.assert_close(varied, waveform)
