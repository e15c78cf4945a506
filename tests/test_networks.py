from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speech.errors import ConfigError
from speech.model.features import MFCC, FeatureConfig
from speech.model.networks import (
    NETWORKS,
    AttentionPooling,
    Classifier,
    CosineLayer,
    Encoder,
    NetworkConfig,
    Normalisation,
    SeparableBlock,
    Transcriber,
    UtteranceNorm,
)

SMALL = NetworkConfig(channels=8, stacking_channels=8, hidden=8)
VARIANTS = {
    "plain": replace(SMALL, cmn="none"),
    "20 ms": replace(SMALL, stacking=1),
    "blocks": replace(SMALL, cmn="mean_variance", blocks=2, block_kernel=5, layers=3),
    "heads": replace(SMALL, stride=1, attention_heads=3, embedding=12),
    "uneven": replace(SMALL, cmn="none", stride=3, stacking=2, blocks=1, block_kernel=3),
}
"""One network for each setting that changes shapes or times."""
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_default_keeps_to_the_budget() -> None:
    assert sum(p.numel() for p in Classifier(40, 22, NetworkConfig()).parameters()) <= 1_200_000


@each_variant
@pytest.mark.parametrize("frames", [18, 57, 98])
def test_steps_follow_the_formula(config: NetworkConfig, frames: int) -> None:
    steps = ((frames - 5) // config.stride + 1 - 3) // config.stacking + 1
    assert Encoder(40, config).eval()(torch.zeros(2, frames, 40)).shape == (2, steps, 16)


@each_variant
def test_a_fifth_of_a_second_is_long_enough(config: NetworkConfig) -> None:
    frames = FeatureConfig().n_frames(16000 // 5)
    network = Classifier(40, 22, config).eval()
    assert torch.isfinite(network(noise(1, frames, 40))).all()


@each_variant
def test_a_step_lies_in_the_middle_of_the_samples_that_reach_it(config: NetworkConfig) -> None:
    """Which samples change a step is asked of the gradient, without the mean, which every sample changes."""
    torch.manual_seed(0)
    features = FeatureConfig()
    encoder, mfcc = Encoder(40, replace(config, cmn="none")).eval(), MFCC(features)
    waveform = noise(1, 2 * features.sample_rate_hz).requires_grad_()
    steps = encoder.steps(mfcc(waveform))
    distance_s, first_s = Encoder.timing(config, features.hop_ms / 1000, features.window_ms / 1000)
    for step in (12, 15):
        (gradient,) = torch.autograd.grad(steps[0, step].sum(), waveform, retain_graph=True)
        reached = gradient[0].nonzero()
        middle_s = (int(reached[0]) + int(reached[-1])) / 2 / features.sample_rate_hz
        assert first_s + distance_s * step == pytest.approx(middle_s, abs=1e-3)


@pytest.mark.parametrize("kind", ["mean", "mean_variance"])
def test_normalisation_removes_the_colour_of_a_microphone(kind: Normalisation) -> None:
    """A filter multiplies the spectrum, and so adds a constant to each coefficient."""
    norm, features = UtteranceNorm(kind), noise(3, 50, 40)
    torch.testing.assert_close(norm(features + 10 * noise(3, 1, 40, seed=1)), norm(features), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(UtteranceNorm("none")(features + 1), features)


def test_an_utterance_is_normalised_by_itself() -> None:
    norm, features = UtteranceNorm("mean_variance"), noise(3, 50, 40) * torch.tensor([0.1, 1, 9])[:, None, None]
    torch.testing.assert_close(norm(features)[1:2], norm(features[1:2]))


def test_loud_changes_are_scaled_down_and_steady_noise_is_not_blown_up() -> None:
    norm = UtteranceNorm("mean_variance")
    deviation = norm(20 * noise(1, 500, 40)).std(1)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=0.01, rtol=0)
    steady = norm(MFCC(FeatureConfig())(0.1 * noise(1, 32000))).std(1)  # white noise deviates by 0.5 to 1.2
    assert steady.max() < 0.8
    assert steady.min() > 0.4


@pytest.mark.parametrize("kind", ["mean", "mean_variance"])
def test_of_digital_silence_nothing_is_left(kind: Normalisation) -> None:
    """Not even the rounding of the mean, which a trained network would blow up."""
    silence = MFCC(FeatureConfig())(torch.zeros(1, 8000))
    assert silence.abs().max() > 100
    assert (UtteranceNorm(kind)(silence) == 0).all()


def test_a_block_is_what_it_adds_to_its_input() -> None:
    torch.manual_seed(0)
    block, x = SeparableBlock(6, 5, dropout=0.0).eval(), noise(2, 6, 20)
    depthwise, pointwise, norm = block.change
    padded = torch.nn.functional.pad(x, (2, 2))
    filtered = torch.stack([(padded[:, :, t : t + 5] * depthwise.weight[:, 0]).sum(2) for t in range(20)], dim=2)
    changed = norm(torch.einsum("oc,bct->bot", pointwise.weight[:, :, 0], filtered))
    torch.testing.assert_close(block(x), torch.relu(x + changed))


def test_attention_is_a_weighted_mean_for_each_head() -> None:
    pool, hidden = AttentionPooling(6, heads=2).eval(), noise(3, 5, 6)
    pooled, attention = pool(hidden)
    torch.testing.assert_close(attention.sum(2), torch.ones(3, 2))
    assert not torch.allclose(attention[:, 0], attention[:, 1])
    for head in range(2):
        expected = sum(attention[:, head, t, None] * hidden[:, t] for t in range(5))
        torch.testing.assert_close(pooled[:, 6 * head : 6 * head + 6], expected)


@each_variant
def test_the_class_layer_sees_the_embedding(config: NetworkConfig) -> None:
    network, features = Classifier(40, 22, config).eval(), noise(2, 98, 40)
    embedding = network.embedding(features)
    assert embedding.shape == (2, config.n_pooled)
    torch.testing.assert_close(network(features), network.classes(embedding))


def test_words_are_distinguished_by_direction_alone() -> None:
    torch.manual_seed(0)
    layer, embedding = CosineLayer(6, 4), noise(3, 6)
    cosine = torch.nn.functional.cosine_similarity(embedding[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(embedding), layer.log_scale.exp() * cosine)
    torch.testing.assert_close(layer(5 * embedding), layer(embedding))


def test_both_scores_come_from_one_pass_and_train_both_layers() -> None:
    network = NETWORKS["classification"](40, 22, VARIANTS["heads"], "torch", n_words=50)
    assert isinstance(network, Classifier)
    logits, words = network.eval().both(noise(2, 98, 40))
    torch.testing.assert_close(logits, network(noise(2, 98, 40)))
    assert words.shape == (2, 50)
    (logits.sum() + words.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_without_words_there_is_no_second_score() -> None:
    network = Classifier(40, 22, SMALL)
    assert not any(name.startswith("words") for name in network.state_dict())
    with pytest.raises(ConfigError, match="n_words"):
        network.both(noise(2, 98, 40))


@each_variant
def test_training_in_bf16_stays_finite(config: NetworkConfig) -> None:
    network = Classifier(40, 22, config, n_words=9).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, words = network.both(10 * noise(4, 98, 40))
    (logits.float().logsumexp(1).sum() + words.float().logsumexp(1).sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_both_directions_reach_the_output() -> None:
    encoder = Encoder(40, VARIANTS["plain"]).eval()
    features = noise(1, 98, 40, seed=1).requires_grad_()
    encoder(features)[0, 10].sum().backward()
    assert features.grad is not None
    touched = features.grad.abs().sum(2)[0] > 0
    assert touched[0]
    assert touched[-4]  # the last frames that a step still covers


def test_forget_gates_start_open() -> None:
    bias = Encoder(40, SMALL).lstm.bias_ih_l0
    torch.testing.assert_close(bias[8:16], torch.ones(8))


def test_a_transcriber_has_scores_for_each_step() -> None:
    network = NETWORKS["ctc"](40, 12, VARIANTS["blocks"], "torch", n_words=50)
    assert isinstance(network, Transcriber)
    assert network.eval()(torch.zeros(2, 98, 40)).shape == (2, 23, 12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", 0),
        ("attention_heads", 0),
        ("blocks", -1),
        ("embedding", -1),
        ("block_kernel", 4),
        ("block_kernel", -1),
        ("dropout", 1.0),
        ("cmn", "variance"),
    ],
)
def test_bad_setting_is_named(field: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        NetworkConfig(**{field: value})


def test_the_lstm_from_its_equations_takes_over_a_trained_network() -> None:
    fast, plain = Classifier(40, 22, SMALL).eval(), Classifier(40, 22, SMALL, lstm="equations").eval()
    plain.load_state_dict(fast.state_dict())
    features = noise(3, 98, 40, seed=2)
    torch.testing.assert_close(plain(features), fast(features), atol=1e-5, rtol=1e-5)
