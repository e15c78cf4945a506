"""How far gradients reach back: against finite differences and closed forms."""

import pytest
import torch
from torch import nn

from recipes.study.gradients import (
    Adder,
    adding_problem,
    descend,
    gradient_norms,
    learn_to_add,
    make_exploding,
    make_network,
)
from speech.model.lstm import LSTM


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", [LSTM, nn.LSTM, nn.RNN])
def test_norms_equal_finite_differences(kind: type) -> None:
    torch.manual_seed(0)
    network = (kind(3, 4, 2) if kind is LSTM else kind(3, 4, 2, batch_first=True, dropout=0.5)).double()
    x = torch.randn(2, 5, 3, generator=seeded(), dtype=torch.float64)
    projection = torch.randn(4, generator=seeded(1), dtype=torch.float64)
    projection /= projection.norm()
    found = gradient_norms(network, x, seeded(1))
    assert network.training, "left as it was"
    assert all(weight.grad is None for weight in network.parameters())
    network.eval()

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(x)[0][:, -1] @ projection  # (batch,)

    slopes = torch.zeros_like(x)
    for t in range(5):
        for i in range(3):
            nudge = torch.zeros_like(x)
            nudge[:, t, i] = 1e-5
            slopes[:, t, i] = (loss(x + nudge) - loss(x - nudge)) / 2e-5
    torch.testing.assert_close(found, slopes.square().sum(2).sqrt().mean(0).flip(0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("radius", [0.8, 1.0, 1.25])
def test_a_linear_rnn_follows_the_power_of_its_spectral_radius(radius: float) -> None:
    network = nn.RNN(6, 6, batch_first=True, bias=False).double()
    with torch.no_grad():
        nn.init.orthogonal_(network.weight_hh_l0, gain=radius, generator=seeded())
        network.weight_ih_l0.copy_(1e-9 * torch.eye(6))  # tanh(a) = a to 16 digits
    norms = gradient_norms(network, torch.randn(2, 20, 6, generator=seeded()), seeded())
    torch.testing.assert_close(norms, 1e-9 * radius ** torch.arange(20, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_the_adding_problem_is_as_defined(steps: int) -> None:
    problem = adding_problem(500, steps, seeded())
    numbers, marks = problem.x.unbind(2)
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    assert (marks[:, : steps // 2].sum(1) == 1).all()
    assert (marks[:, steps // 2 :].sum(1) == 1).all()
    assert (marks.sum(0) > 0).all(), "every place is marked at times"
    assert 0 <= numbers.min() < numbers.max() < 1
    torch.testing.assert_close(problem.target, torch.einsum("bt,bt->b", numbers, marks))
    assert (problem.target - 1).square().mean().item() == pytest.approx(1 / 6, rel=0.2)


def test_an_open_forget_gate_lets_gradients_through() -> None:
    x = adding_problem(8, 60, seeded()).x
    networks = [make_network("lstm", 16, seeded(), bias) for bias in (-1, 0, 1, 2)]
    far = [(norms[-1] / norms[0]).item() for norms in (gradient_norms(n, x, seeded()) for n in networks)]
    assert far == sorted(far)
    assert far[-1] > 1e6 * far[0]
    rnn = gradient_norms(make_network("rnn", 16, seeded()), x, seeded())
    assert far[2] > 10 * rnn[-1] / rnn[0]
    bias = sum(weight for name, weight in networks[-1].named_parameters() if "bias" in name)
    assert bias[16:32].tolist() == [2.0] * 16, "torch's order: input, forget, candidate, output"
    assert bias[:16].abs().max() < 1


def test_training_learns_a_short_sum_and_repeats_itself() -> None:
    descent, error = learn_to_add("lstm", steps=4, hidden=12, updates=250, seed=0)
    assert len(descent.losses) == 250
    assert error < 0.05  # always answering 1 gives 0.167
    assert learn_to_add("lstm", steps=4, hidden=12, updates=5, seed=0)[0].losses == descent.losses[:5]


def test_clipping_bounds_the_update_and_keeps_the_loss() -> None:
    problems = [adding_problem(32, 50, seeded(1)) for _ in range(20)]
    found = []
    for radius, clip in ((1.1, torch.inf), (1.1, 0.5), (0.9, torch.inf)):
        generator = seeded()
        adder = Adder(make_exploding(50, 32, radius, generator), generator)
        norms = gradient_norms(adder.recurrent, problems[0].x, seeded())
        assert bool(norms[-1] > norms[0]) is (radius > 1)
        before = nn.utils.parameters_to_vector(adder.parameters()).detach().clone()
        optimizer = torch.optim.SGD(adder.parameters(), 0.05)
        first = descend(adder, problems[:1], optimizer, clip)
        step = (nn.utils.parameters_to_vector(adder.parameters()) - before).norm().item()
        assert step == pytest.approx(0.05 * min(first.gradients[0], clip), rel=1e-3)
        found.append(first.losses + descend(adder, problems[1:], optimizer, clip).losses)
    free, clipped, stable = found
    assert free[0] == clipped[0]
    assert max(free) > 1e6
    assert max(clipped) < 10
    assert max(stable) < 10
