import numpy as np
import pytest
import torch

from recipes.data.augment import (
    Augment,
    AugmentConfig,
    add_noise,
    as_heard_live,
    impulse_responses,
    reverberate,
    speech_power,
    warp,
)
from speech.errors import ConfigError
from speech.segment import high_pass

NOTHING = AugmentConfig(
    gain_db=(0.0, 0.0), noisy=0.0, faint=0.0, roomy=0.0, tilt=0.0, peaks=0.0, muffled=0.0, thin=0.0, narrow=0.0
)
NO_ROOMS = torch.zeros(0, 10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noises(n: int, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(n, 16000, generator=generator(seed))


def vary(config: AugmentConfig, waveform: torch.Tensor, noise: torch.Tensor | None = None, **more) -> torch.Tensor:
    rooms, sounding = more.get("rooms", NO_ROOMS), more.get("sounding", torch.ones(len(waveform), dtype=torch.bool))
    augment = Augment(config, rooms, generator(more.get("seed", 0)))
    return augment.waveform(waveform, torch.zeros_like(waveform) if noise is None else noise, sounding)


def change_db(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(batch, 8000) of how much each hertz was raised, smoothed over a hundred of them."""
    power = [torch.fft.rfft(x).abs().square()[:, None, 1:] for x in (before, after)]
    smooth = [torch.nn.functional.avg_pool1d(p, 101, 1, 50)[:, 0] for p in power]
    return 10 * torch.log10(smooth[1] / smooth[0])


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


def test_the_loudest_quarter_of_a_second_counts() -> None:
    waveform = torch.zeros(1, 32000)
    waveform[0, 8000:12000] = 0.5
    assert speech_power(waveform).item() == pytest.approx(0.25)


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


def test_the_high_pass_is_that_of_the_live_loop() -> None:
    waveform = noises(1)
    theirs = torch.from_numpy(high_pass(waveform[0].numpy()))[None]
    ours = as_heard_live(waveform)
    power = [torch.fft.rfft(x[:, 1000:] * torch.hann_window(15000)).abs().square()[0] for x in (ours, theirs)]
    for low_hz, high_hz in ((20, 60), (60, 100), (100, 200), (200, 1000), (1000, 7900)):
        band = slice(int(low_hz * 15 / 16), int(high_hz * 15 / 16))
        assert 10 * torch.log10(power[0][band].sum() / power[1][band].sum()).item() == pytest.approx(0, abs=0.5)


def test_with_nothing_to_vary_only_the_high_pass_remains() -> None:
    waveform = noises(3)
    torch.testing.assert_close(vary(NOTHING, waveform, noises(3, 1)), as_heard_live(waveform), atol=1e-4, rtol=1e-3)


def test_the_seed_decides_everything() -> None:
    waveform, noise = 2 * noises(8), noises(8, 1)
    rooms = torch.randn(3, 100, generator=generator())
    first, again, other = (vary(AugmentConfig(), waveform, noise, rooms=rooms, seed=s) for s in (1, 1, 2))
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)
    assert first.abs().max() <= 1


def test_noise_and_room_stay_away_from_silence() -> None:
    waveform = noises(8)
    config = AugmentConfig(tilt=0, peaks=0, muffled=0, thin=0, narrow=0, noisy=1.0, faint=0.0, roomy=1.0)
    rooms, nobody = torch.randn(3, 100, generator=generator()), torch.zeros(8, dtype=torch.bool)
    varied = vary(config, waveform, noises(8, 1), rooms=rooms, sounding=nobody)
    torch.testing.assert_close(varied, as_heard_live(waveform), atol=1e-4, rtol=1e-3)


def test_noise_is_mixed_in_at_the_ratio_of_the_config() -> None:
    waveform, noise = noises(6), noises(6, 1)
    config = AugmentConfig(**(vars(NOTHING) | {"noisy": 1.0, "snr_db": (10.0, 10.0)}))
    added = vary(config, waveform, noise) - vary(NOTHING, waveform)
    ratio_db = 10 * torch.log10(speech_power(waveform)[:, 0] / added.square().mean(1))
    torch.testing.assert_close(ratio_db, torch.full((6,), 10.0), atol=0.3, rtol=0)


def test_a_share_is_faintly_noisy_and_a_share_clean() -> None:
    waveform, noise = noises(300), noises(300, 1)
    config = AugmentConfig(**(vars(NOTHING) | {"noisy": 0.5, "faint": 0.3, "snr_db": (10.0, 10.0)}))
    added = (vary(config, waveform, noise) - as_heard_live(waveform)).square().mean(1)
    ratio_db = 10 * torch.log10(waveform.square().mean(1) / (added + 1e-12))
    assert (ratio_db < 15).float().mean() == pytest.approx(0.5, abs=0.08)
    assert ((ratio_db > 30) & (ratio_db < 65)).float().mean() == pytest.approx(0.3, abs=0.08)


def test_a_room_keeps_the_level() -> None:
    waveform = noises(20)
    rooms = torch.randn(3, 2000, generator=generator()) * torch.exp(-torch.arange(2000) / 300)
    varied = vary(AugmentConfig(**(vars(NOTHING) | {"roomy": 0.5})), waveform, rooms=rooms)
    dry = vary(NOTHING, waveform)
    changed = (varied - dry).abs().amax(1) > 1e-3
    assert 3 < changed.sum() < 17
    torch.testing.assert_close(varied.square().mean(1), dry.square().mean(1), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("setting", "edges_hz", "low_falls"),
    [
        ({"muffled": 1.0, "muffled_hz": (1000.0, 1000.0)}, (900, 4000), False),
        ({"narrow": 1.0, "narrow_hz": (4000.0, 4000.0)}, (3900, 4300), False),
        ({"thin": 1.0, "thin_hz": (400.0, 400.0)}, (150, 500), True),
    ],
)
def test_a_microphone_may_lack_a_part_of_the_spectrum(
    setting: dict[str, object], edges_hz: tuple[int, int], low_falls: bool
) -> None:
    waveform = noises(4)
    config = AugmentConfig(**(vars(NOTHING) | setting))
    change = change_db(as_heard_live(waveform), vary(config, waveform))
    below, above = change[:, 100 : edges_hz[0]].mean(1), change[:, edges_hz[1] : 7800].mean(1)
    fallen, kept = (below, above) if low_falls else (above, below)
    assert (kept - fallen > (6 if low_falls else 20)).all()


def test_tilt_and_peaks_colour_each_example_in_its_own_way() -> None:
    waveform = noises(12)
    for setting, most_db in (({"tilt": 1.0, "tilt_db": 3.0}, 20.0), ({"peaks": 1.0, "peak_db": 6.0}, 20.0)):
        change = change_db(as_heard_live(waveform), vary(AugmentConfig(**(vars(NOTHING) | setting)), waveform))
        colour = change[:, 200:7800] - change[:, 200:7800].mean(1, keepdim=True)
        assert 1 < colour.std(1).median() < 8
        assert colour.abs().max() < most_db
        assert torch.corrcoef(colour).triu(1).abs().max() <= 1 + 1e-3
        assert torch.corrcoef(colour)[0, 1:].min() < 0.5


def test_masks_put_the_mean() -> None:
    features = torch.randn(4, 98, 40, generator=generator())
    config = AugmentConfig(stretch=0.0, colour=0.0)
    varied = Augment(config, NO_ROOMS, generator(5)).features(features)
    changed = (varied - features).abs() > 1e-4
    assert 0 < changed.float().mean() < 0.5
    mean = features.mean(1, keepdim=True).expand_as(features)
    masked_once = changed & ((varied - mean).abs() < 1e-4)
    assert masked_once.sum() > 0.5 * changed.sum()  # the rest is masked twice: the mean of a masked item


def test_digital_silence_stays_finite_and_silent() -> None:
    nothing = torch.zeros(4, 8000)
    varied = vary(AugmentConfig(), nothing, noises(4)[:, :8000], rooms=torch.ones(2, 50))
    assert torch.isfinite(varied).all()
    assert varied.abs().max() < 1e-3


@pytest.mark.parametrize("setting", [{"noisy": 1.5}, {"muffled": -0.1}, {"stretch": 0.6}, {"faint": 0.9}])
def test_bad_setting_is_named(setting: dict[str, float]) -> None:
    ((field, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{field}={np.float64(value):g}"):
        AugmentConfig(**setting)
