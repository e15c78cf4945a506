from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speech.errors import ConfigError
from speech.model.features import MFCC, n_frames
from speech.model.networks import (
    NETWORKS,
    AttentionPooling,
    Classifier,
    CosineLayer,
    Encoder,
    NetworkConfig,
    SeparableBlock,
    Transcriber,
    UtteranceNorm,
)

SMALL = NetworkConfig(channels=(4, 6, 8), width=8, hidden=8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_default_keeps_to_the_budget() -> None:
    assert sum(p.numel() for p in Classifier(22, NetworkConfig()).parameters()) <= 1_250_000


@pytest.mark.parametrize("frames", [18, 57, 98, 99])
def test_steps_follow_the_formula(frames: int) -> None:
    assert Encoder(SMALL).eval()(torch.zeros(2, frames, 40)).shape == (2, -(-frames // 4), 16)


def test_a_fifth_of_a_second_is_long_enough() -> None:
    for speed in (0.85, 1.0, 1.15):
        features = MFCC(speed)(noise(1, 3200))
        assert features.shape[1] >= n_frames(3200) - 4
        assert torch.isfinite(Classifier(22, SMALL).eval()(features)).all()


def test_a_step_lies_in_the_middle_of_the_samples_that_reach_it() -> None:
    """Which samples change a step is asked of the gradient, without the mean, which every sample changes."""
    torch.manual_seed(0)
    encoder, mfcc = Encoder(SMALL).eval(), MFCC()
    encoder.norm = torch.nn.Identity()
    waveform = noise(1, 32000).requires_grad_()
    steps = encoder.steps(mfcc(waveform))
    distance_s, first_s = Encoder.timing()
    for step in (12, 15):
        (gradient,) = torch.autograd.grad(steps[0, step].sum(), waveform, retain_graph=True)
        reached = gradient[0].nonzero()
        middle_s = (int(reached[0]) + int(reached[-1])) / 2 / 16000
        assert first_s + distance_s * step == pytest.approx(middle_s, abs=1e-3)


def test_normalisation_removes_the_colour_of_a_microphone() -> None:
    """A filter multiplies the spectrum, and so adds a constant to each coefficient."""
    norm, features = UtteranceNorm(), noise(3, 50, 40)
    torch.testing.assert_close(norm(features + 10 * noise(3, 1, 40, seed=1)), norm(features), atol=1e-4, rtol=1e-4)


def test_an_utterance_is_normalised_by_itself() -> None:
    norm, features = UtteranceNorm(), noise(3, 50, 40) * torch.tensor([0.1, 1, 9])[:, None, None]
    torch.testing.assert_close(norm(features)[1:2], norm(features[1:2]))


def test_loud_changes_are_scaled_down_and_steady_noise_is_not_blown_up() -> None:
    norm = UtteranceNorm()
    deviation = norm(20 * noise(1, 500, 40)).std(1)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=0.01, rtol=0)
    steady = norm(MFCC()(0.1 * noise(1, 32000))).std(1)  # white noise deviates by 0.5 to 1.2
    assert steady.max() < 0.8
    assert steady.min() > 0.4


def test_of_digital_silence_nothing_is_left() -> None:
    """Not even the rounding of the mean, which a trained network would blow up."""
    silence = MFCC()(torch.zeros(1, 8000))
    assert silence.abs().max() > 100
    assert (UtteranceNorm()(silence) == 0).all()


def test_the_network_sees_the_picture_of_the_mel_filters() -> None:
    """With all coefficients the transposed DCT would give it back; with 40 of 64 its fine ripples are gone."""
    dct, ramp = Encoder(SMALL).dct, torch.linspace(-1, 1, 64)
    torch.testing.assert_close(dct @ dct.T, torch.eye(40), atol=1e-5, rtol=0)
    assert ((dct @ ramp) @ dct - ramp)[2:-2].abs().max() < 0.05


@pytest.mark.parametrize(("outputs", "stride"), [(6, (1, 1)), (6, (1, 2)), (9, (1, 1))])
def test_a_block_is_residual_where_the_shape_stays(outputs: int, stride: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block, x = SeparableBlock(6, outputs, stride).eval(), noise(2, 6, 20, 16)
    depthwise, _, pointwise, _ = block.change
    scale = (1 + 1e-5) ** -0.5  # of an untrained batch norm
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    patches = padded.unfold(2, 3, stride[0]).unfold(3, 3, stride[1])  # (batch, channels, frames, bands, 3, 3)
    filtered = torch.einsum("bcftij,cij->bcft", patches, depthwise.weight[:, 0]) * scale
    changed = torch.einsum("oc,bcft->boft", pointwise.weight[:, :, 0, 0], filtered) * scale
    expected = x + changed if outputs == 6 and stride == (1, 1) else changed
    torch.testing.assert_close(block(x), torch.relu(expected), atol=1e-5, rtol=1e-4)


def test_attention_is_a_weighted_mean() -> None:
    pool, hidden = AttentionPooling(6).eval(), noise(3, 5, 6)
    pooled, attention = pool(hidden)
    torch.testing.assert_close(attention.sum(2), torch.ones(3, 1))
    expected = sum(attention[:, 0, t, None] * hidden[:, t] for t in range(5))
    torch.testing.assert_close(pooled, expected)


def test_the_class_layer_sees_the_embedding() -> None:
    network, features = Classifier(22, SMALL).eval(), noise(2, 98, 40)
    embedding = network.outputs(features)["embedding"]
    assert embedding.shape == (2, 16)
    torch.testing.assert_close(network(features), network.classes(embedding))


def test_words_are_distinguished_by_direction_alone() -> None:
    torch.manual_seed(0)
    layer, embedding = CosineLayer(6, 4), noise(3, 6)
    cosine = torch.nn.functional.cosine_similarity(embedding[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(embedding), layer.log_scale.exp() * cosine)
    torch.testing.assert_close(layer(5 * embedding), layer(embedding))


def test_both_scores_come_from_one_pass_and_train_both_layers() -> None:
    network = NETWORKS["classification"](22, SMALL, "torch", n_words=50)
    assert isinstance(network, Classifier)
    logits, words = network.eval().both(noise(2, 98, 40))
    torch.testing.assert_close(logits, network(noise(2, 98, 40)))
    assert words.shape == (2, 50)
    (logits.sum() + words.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_without_words_there_is_no_second_score() -> None:
    network = Classifier(22, SMALL)
    assert not any(name.startswith("words") for name in network.state_dict())
    with pytest.raises(ConfigError, match="n_words"):
        network.both(noise(2, 98, 40))


def test_training_in_bf16_stays_finite() -> None:
    network = Classifier(22, replace(SMALL, layers=3), n_words=9).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, words = network.both(10 * noise(4, 98, 40))
    (logits.float().logsumexp(1).sum() + words.float().logsumexp(1).sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_both_directions_reach_the_output() -> None:
    encoder = Encoder(SMALL).eval()
    features = noise(1, 98, 40, seed=1).requires_grad_()
    encoder(features)[0, 10].sum().backward()
    assert features.grad is not None
    touched = features.grad.abs().sum(2)[0] > 0
    assert touched[0]
    assert touched[-4]  # the last frames that a step still covers


def test_forget_gates_start_open() -> None:
    bias = Encoder(SMALL).lstm.bias_ih_l0
    torch.testing.assert_close(bias[8:16], torch.ones(8))


def test_a_transcriber_has_scores_for_each_step() -> None:
    network = NETWORKS["ctc"](12, SMALL, "torch", n_words=50)
    assert isinstance(network, Transcriber)
    assert network.eval()(torch.zeros(2, 98, 40)).shape == (2, 25, 12)


@pytest.mark.parametrize(
    ("field", "value"),
    [("channels", (4, 6)), ("channels", (4, 6, 0)), ("hidden", 0), ("layers", 0), ("width", 0), ("dropout", 1.0)],
)
def test_bad_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"at least 1|dropout=1"):
        NetworkConfig(**{field: value})  # type: ignore[arg-type]


def test_the_lstm_from_its_equations_takes_over_a_trained_network() -> None:
    fast, plain = Classifier(22, SMALL).eval(), Classifier(22, SMALL, lstm="equations").eval()
    plain.load_state_dict(fast.state_dict())
    features = noise(3, 98, 40, seed=2)
    torch.testing.assert_close(plain(features), fast(features), atol=1e-5, rtol=1e-5)
