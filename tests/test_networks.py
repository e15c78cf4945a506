from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from speech.errors import ConfigError
from speech.training.networks import (
    ClassificationHead,
    Classifier,
    Encoder,
    NetworkConfig,
    fit_normalisation,
)

SMALL = NetworkConfig(channels=8, stacking_channels=8, hidden=8)


def test_the_default_keeps_to_the_budget() -> None:
    assert sum(p.numel() for p in Classifier(40, 22, NetworkConfig()).parameters()) <= 1_200_000


@pytest.mark.parametrize("frames", [20, 57, 98])
def test_steps_follow_the_formula(frames: int) -> None:
    steps = ((frames - 5) // SMALL.stride + 1 - 3) // SMALL.stacking + 1
    assert Encoder(40, SMALL).eval()(torch.zeros(2, frames, 40)).shape == (2, steps, 16)


def test_attention_is_a_weighted_mean() -> None:
    head = ClassificationHead(6, 4).eval()
    hidden = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    logits, attention = head(hidden)
    torch.testing.assert_close(attention.sum(1), torch.ones(2))
    pooled = sum(attention[:, t, None] * hidden[:, t] for t in range(5))
    torch.testing.assert_close(logits, head.classes(pooled))


def test_both_directions_reach_the_output() -> None:
    encoder = Encoder(40, SMALL).eval()
    features = torch.randn(1, 98, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
    encoder(features)[0, 10].sum().backward()
    assert features.grad is not None
    touched = features.grad.abs().sum(2)[0] > 0
    assert touched[0]
    assert touched[-4]  # the last frames that a step still covers


def test_forget_gates_start_open() -> None:
    bias = Encoder(40, SMALL).lstm.bias_ih_l0
    torch.testing.assert_close(bias[8:16], torch.ones(8))


def test_normalisation_is_fitted_without_a_change_and_then_suits_training() -> None:
    generator = torch.Generator().manual_seed(4)
    network = Classifier(40, 22, replace(SMALL, dropout=0.0)).eval()
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(generator=generator)
    batches = [3 + 2 * torch.randn(64, 98, 40, generator=generator) for _ in range(3)]
    before = network(batches[0])
    assert not torch.allclose(deepcopy(network).train()(batches[0]), before, atol=0.1)
    fit_normalisation(network.eval(), batches)
    torch.testing.assert_close(network(batches[0]), before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.train()(batches[0]), before, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("field", "value"), [("hidden", 0), ("dropout", 1.0)])
def test_bad_size_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        NetworkConfig(**{field: value})


def test_the_lstm_from_its_equations_takes_over_a_trained_network() -> None:
    fast, plain = Classifier(40, 22, SMALL).eval(), Classifier(40, 22, SMALL, lstm="equations").eval()
    plain.load_state_dict(fast.state_dict())
    features = torch.randn(3, 98, 40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(plain(features), fast(features), atol=1e-5, rtol=1e-5)
