"""How far gradients reach back: against finite differences and closed forms; the command on tiny sizes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.study import gradients
from recipes.study.rnn_gradients import (
    AddingConfig,
    adding_problem,
    explode,
    gradient_norms,
    make_network,
    set_forget_bias,
    train_adding,
)
from speech.errors import ConfigError
from speech.model.lstm import LSTM, RNN


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", [LSTM, RNN, nn.LSTM, nn.RNN])
def test_norms_equal_finite_differences(kind: type) -> None:
    torch.manual_seed(0)
    own = kind in (LSTM, RNN)
    network = (kind(3, 4, 2) if own else kind(3, 4, 2, batch_first=True)).double()
    x = torch.randn(2, 5, 3, generator=seeded(), dtype=torch.float64)
    projection = torch.randn(4, generator=seeded(1), dtype=torch.float64)
    projection /= projection.norm()

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(x)[0][:, -1] @ projection  # (batch,)

    slopes = torch.zeros_like(x)
    for t in range(5):
        for i in range(3):
            nudge = torch.zeros_like(x)
            nudge[:, t, i] = 1e-5
            slopes[:, t, i] = (loss(x + nudge) - loss(x - nudge)) / 2e-5
    by_time = slopes.square().sum(2).sqrt().mean(0)
    torch.testing.assert_close(gradient_norms(network, x, seeded(1)), by_time.flip(0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_a_linear_rnn_follows_the_power_of_its_spectral_radius(scale: float) -> None:
    network = nn.RNN(6, 6, batch_first=True, bias=False).double()
    with torch.no_grad():
        nn.init.orthogonal_(network.weight_hh_l0, gain=scale, generator=seeded())
        network.weight_ih_l0.copy_(1e-9 * torch.eye(6))  # tanh(a) = a to 16 digits
    norms = gradient_norms(network, torch.randn(2, 20, 6, generator=seeded()), seeded())
    torch.testing.assert_close(norms, 1e-9 * scale ** torch.arange(20, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_network_and_the_input_are_left_alone() -> None:
    network, x = nn.LSTM(2, 4, batch_first=True, num_layers=2, dropout=0.5), torch.rand(2, 5, 2)
    again = [gradient_norms(network, x, seeded()) for _ in range(2)]
    torch.testing.assert_close(*again, rtol=0, atol=0)
    assert network.training
    assert not x.requires_grad
    assert all(weight.grad is None and weight.dtype == torch.float32 for weight in network.parameters())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.LSTM(2, 3, batch_first=True, bidirectional=True), "bidirectional=True"),
        (RNN(2, 3, bidirectional=True), "bidirectional=True"),
        (nn.RNN(2, 3), "batch_first=False"),
    ],
)
def test_networks_without_a_last_step_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gradient_norms(network, torch.zeros(1, 4, 2), seeded())


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_the_adding_problem_is_as_defined(steps: int) -> None:
    problem = adding_problem(500, steps, seeded())
    numbers, marks = problem.x.unbind(2)
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    assert (marks[:, : steps // 2].sum(1) == 1).all()
    assert (marks[:, steps // 2 :].sum(1) == 1).all()
    assert (marks.sum(0) > 0).all(), "every place is marked at times"
    assert numbers.min() >= 0
    assert numbers.max() < 1
    torch.testing.assert_close(problem.target, torch.einsum("bt,bt->b", numbers, marks))
    assert (problem.target - 1).square().mean().item() == pytest.approx(1 / 6, rel=0.2)
    torch.testing.assert_close(adding_problem(500, steps, seeded()).x, problem.x, rtol=0, atol=0)
    assert not torch.equal(adding_problem(500, steps, seeded(1)).x, problem.x)


def test_an_open_forget_gate_lets_gradients_through() -> None:
    x = adding_problem(8, 60, seeded()).x
    found = {bias: gradient_norms(make_network("lstm", 16, seeded(), bias), x, seeded()) for bias in (-1, 0, 1, 2)}
    far = [(norms[-1] / norms[0]).item() for norms in found.values()]
    assert far == sorted(far)
    assert far[-1] > 1e6 * far[0]
    rnn = gradient_norms(make_network("rnn", 16, seeded()), x, seeded())
    assert far[2] > 10 * rnn[-1] / rnn[0]


def test_forget_bias_reaches_only_the_forget_gates() -> None:
    torch.manual_seed(0)
    ours, theirs = LSTM(2, 3, 2), nn.LSTM(2, 3, 2, batch_first=True)
    before = {name: weight.clone() for name, weight in theirs.state_dict().items()}
    ours.load_state_dict(before)
    for network in (ours, theirs):
        set_forget_bias(network, 1.5)
        after = network.state_dict()
        for layer in range(2):
            bias = after[f"bias_ih_l{layer}"] + after[f"bias_hh_l{layer}"]
            torch.testing.assert_close(bias[3:6], torch.full((3,), 1.5))
        same = {
            name: (after[name] == value) | (torch.arange(len(value)) // 3 == 1)
            for name, value in before.items()
            if "bias" in name
        }
        assert all(kept.all() for kept in same.values())
        assert all(torch.equal(after[name], value) for name, value in before.items() if "weight" in name)


def test_training_learns_a_short_sum_and_repeats_itself() -> None:
    config = AddingConfig(steps=4, hidden=12, updates=250)
    trained = train_adding("lstm", config)
    assert len(trained.losses) == 250
    assert trained.error < 0.05  # always answering 1 gives 0.167
    few = AddingConfig(steps=4, hidden=12, updates=5)
    assert train_adding("lstm", few).losses == trained.losses[:5]
    assert isinstance(train_adding("rnn", few).network, nn.RNN)


def test_clipping_bounds_the_update_and_keeps_the_loss() -> None:
    explosion = explode(steps=50, hidden=32, clip=0.5, updates=20, learning_rate=0.05)
    assert explosion.norms[-10:].mean() > 10 * explosion.norms[:10].mean()
    free, clipped = explosion.free, explosion.clipped
    assert free.losses[0] == clipped.losses[0]
    assert free.gradients[0] == clipped.gradients[0] > 10
    assert free.first_step == pytest.approx(0.05 * free.gradients[0], rel=1e-3)
    assert clipped.first_step == pytest.approx(0.05 * 0.5, rel=1e-3)
    assert max(free.losses) > 1e6
    assert max(clipped.losses) < 10


def test_without_an_explosion_nothing_needs_clipping() -> None:
    explosion = explode(steps=50, hidden=32, radius=0.9, updates=20, learning_rate=0.05)
    assert explosion.norms[-1] < explosion.norms[0]
    assert max(explosion.free.losses) < 10


def test_the_command_prints_and_writes_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "new/figures.json", tmp_path / "new/curves.png"
    size = ["--steps", "12", "--lag", "8", "--hidden", "8", "--updates", "5"]
    assert gradients.main([*size, "--json", str(figures), "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(figures.read_text())
    assert lines[1].split() == ["0", "1", "3", "6", "11"]
    assert len(found["relative_norms"]) == 7
    for name, norms in found["relative_norms"].items():
        (line,) = (line for line in lines if line.strip().startswith(f"{name} "))
        assert len(norms) == 12
        assert line.split()[-5:] == [f"{norms[distance]:.1e}" for distance in (0, 1, 3, 6, 11)]
    for name in ("RNN", "LSTM"):
        assert f"  {name:26}{found['adding'][name]['error']:10.4f}" in lines
        assert len(found["adding"][name]["losses"]) == 5
    (clipped,) = (line for line in lines if line.strip().startswith("clipped at 1"))
    assert clipped.split()[3] == f"{found['exploding']['clipped']['gradients'][0]:.1f}"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--steps", "1"], "steps=1"),
        (["--lag", "1"], "steps=1"),
        (["--hidden", "0"], "hidden=0"),
        (["--updates", "0"], "updates=0"),
        (["--seed", "-1"], "seed=-1"),
    ],
)
def test_a_wrong_size_is_reported_in_one_line(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradients.main(wrong) == 2
    reported = capsys.readouterr().err
    assert reported.startswith("error: ")
    assert message in reported
    assert reported.count("\n") == 1


def test_a_place_that_cannot_be_written_is_reported_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert gradients.main(["--json", str(tmp_path / "file/figures.json")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
