"""How far back in time a recurrent network can learn: the norm of d loss / d x_t against the distance in time.

Backpropagation through one step multiplies the gradient by the Jacobian of that step.  In a plain RNN this is
W_hh^T diag(1 - h_t^2), whose product over many steps vanishes or explodes with the spectral radius of W_hh.  Along
the cell state of an LSTM it is diag(f_t): a forget gate near 1 lets the gradient through, and before
training its bias sets it.

Source: Bengio, Simard and Frasconi 1994; Hochreiter and Schmidhuber 1997; clipping: Pascanu, Mikolov and Bengio 2013.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from speech.errors import ConfigError
from speech.model.lstm import LSTM

Kind = Literal["rnn", "lstm"]
Network = LSTM | nn.LSTM | nn.RNN
BASELINE = 1 / 6
"""Mean squared error in the adding problem of always answering the mean, 1: the variance of the sum."""
EVALUATED = 1024
"""Sequences on which a trained network is scored, drawn after the training sequences."""


@dataclass(frozen=True)
class AddingProblem:
    """A batch of the adding problem."""

    x: Tensor
    """(batch, steps, 2): a number from 0 to 1, and its mark: 1 for the two numbers to add, else 0."""
    target: Tensor
    """(batch,): the sum of the two marked numbers."""


@dataclass(frozen=True)
class AddingConfig:
    """Sizes and training settings for the adding problem."""

    steps: int = 50
    """Length of the sequences; on average the two marks are half that far apart."""
    hidden: int = 64
    """Recurrent units, one layer."""
    batch: int = 32
    """Sequences per update; each update draws new ones."""
    updates: int = 2000
    """Number of steps of Adam."""
    learning_rate: float = 1e-2
    clip: float | None = 1.0
    """Largest norm of the gradient over all weights; None: no clipping."""
    forget_bias: float = 1.0
    """Initial bias of the LSTM's forget gates."""
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in {"steps": 2, "hidden": 1, "batch": 1, "updates": 1}.items():
            if getattr(self, field) < least:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least {least}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed} must lie in 0..2**32 - 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate={self.learning_rate} must be above 0")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"clip={self.clip} must be above 0, or None for no clipping")


@dataclass(frozen=True)
class Trained:
    """A network after training on the adding problem."""

    network: Network
    losses: tuple[float, ...]
    """Mean squared error on the batch of each update, before the update."""
    error: float
    """Mean squared error on new sequences."""


@dataclass(frozen=True)
class Descent:
    """A few updates by plain gradient descent."""

    losses: tuple[float, ...]
    """Mean squared error before each update; ends early when it is no longer finite."""
    gradients: tuple[float, ...]
    """Norm of the gradient over all weights at each update, before clipping."""
    first_step: float
    """Norm of the first update's change of all weights."""


@dataclass(frozen=True)
class Explosion:
    """Training of a plain RNN whose gradient grows with the distance in time."""

    norms: Tensor
    """(steps,): result of `gradient_norms` before the first update."""
    free: Descent
    """Without clipping."""
    clipped: Descent
    """With clipping."""


def make_network(kind: Kind, hidden: int, generator: torch.Generator, forget_bias: float = 1.0) -> nn.LSTM | nn.RNN:
    """A one-layer network for inputs (batch, steps, 2); weights are uniform within +-1 / sqrt(hidden), as in torch."""
    if kind not in get_args(Kind):
        raise ConfigError(f"kind={kind!r} must be one of {', '.join(get_args(Kind))}")
    network = nn.LSTM(2, hidden, batch_first=True) if kind == "lstm" else nn.RNN(2, hidden, batch_first=True)
    draw(network, hidden**-0.5, generator)
    if isinstance(network, nn.LSTM):
        set_forget_bias(network, forget_bias)
    return network


def draw(module: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Fill all weights with uniform numbers from -bound to bound."""
    for weight in module.parameters():
        nn.init.uniform_(weight, -bound, bound, generator=generator)


def set_forget_bias(network: LSTM | nn.LSTM, value: float) -> None:
    """Set the bias of every forget gate: `bias_ih` to `value` and `bias_hh`, which is added to it, to zero."""
    forget = slice(network.hidden_size, 2 * network.hidden_size)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "bias_ih" in name or "bias_hh" in name:
                weight[forget] = value if "bias_ih" in name else 0.0


def gradient_norms(network: Network, x: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over the batch of || d loss / d x_t ||; the loss is a random projection of the last step's output.

    It is computed on a copy of the network without dropout, in float64: far back, the norms are too small for float32.

    Args:
        network: unidirectional, batch first; any number of layers.
        x: (batch, steps, input_size)
        generator: draws the projection, a vector of norm 1; the same seed gives the same loss.
    Returns:
        (steps,), float64, by distance: index 0 is the last step, index steps - 1 the first.
    Raises:
        ConfigError: the network is bidirectional or not batch first, or `x` has another shape.
    """
    if not isinstance(network, LSTM) and not network.batch_first:
        raise ConfigError("batch_first=False, expected a network that takes (batch, steps, input_size)")
    if len(network.directions) > 1 if isinstance(network, LSTM) else network.bidirectional:
        raise ConfigError("bidirectional=True, expected a network that reads forwards only: its last step comes first")
    if x.ndim != 3 or 0 in x.shape:
        raise ConfigError(f"x has shape {tuple(x.shape)}, expected (batch, steps, input_size), none of them 0")
    x = x.double().detach().requires_grad_()
    output, _ = deepcopy(network).double().eval()(x)
    projection = torch.randn(output.shape[2], generator=generator, dtype=torch.float64)
    loss = (output[:, -1] @ projection / projection.norm()).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.norm(dim=2).mean(0).flip(0)


def adding_problem(batch: int, steps: int, generator: torch.Generator) -> AddingProblem:
    """Draw numbers from 0 to 1 and mark one in each half of the sequence; the sum of the two is the target.

    Source: Hochreiter and Schmidhuber 1997, experiment 4, with the marks as in Arjovsky, Shah and Bengio 2016.
    """
    if batch < 1 or steps < 2:
        raise ConfigError(f"batch={batch}, steps={steps}: expected at least 1 sequence and 2 steps, one in each half")
    numbers = torch.rand(batch, steps, generator=generator)
    marks = torch.zeros(batch, steps)
    for start, end in ((0, steps // 2), (steps // 2, steps)):
        marks[torch.arange(batch), torch.randint(start, end, (batch,), generator=generator)] = 1.0
    return AddingProblem(torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1))


def squared_error(network: nn.Module, read_out: nn.Module, problem: AddingProblem) -> Tensor:
    """Mean squared error of the sum that `read_out` predicts from the last step's output."""
    output, _ = network(problem.x)
    return (read_out(output[:, -1])[:, 0] - problem.target).square().mean()


def train_adding(kind: Kind, config: AddingConfig) -> Trained:
    """Train a network and a linear read-out on the adding problem, under the same conditions for both kinds."""
    generator = torch.Generator().manual_seed(config.seed)
    network = make_network(kind, config.hidden, generator, config.forget_bias)
    read_out = nn.Linear(config.hidden, 1)
    draw(read_out, config.hidden**-0.5, generator)
    weights = [*network.parameters(), *read_out.parameters()]
    problems = torch.Generator().manual_seed(config.seed + 1)  # separate: both kinds see the same sequences
    optimizer = torch.optim.Adam(weights, config.learning_rate)
    losses = []
    for _ in range(config.updates):
        loss = squared_error(network, read_out, adding_problem(config.batch, config.steps, problems))
        optimizer.zero_grad()
        loss.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(weights, config.clip)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        error = squared_error(network, read_out, adding_problem(EVALUATED, config.steps, problems)).item()
    return Trained(network, tuple(losses), error)


def make_exploding(steps: int, hidden: int, radius: float, generator: torch.Generator) -> Network:
    """A plain RNN with orthogonal recurrent weights times `radius`, its spectral radius, and no bias.

    The input weights are so small that tanh stays in its linear part.  The gradient of the last output with respect to
    x_t then grows as radius**distance, except for the random direction of the few inputs in the hidden space.
    """
    network = make_network("rnn", hidden, generator)
    weights = dict(network.named_parameters())
    nn.init.orthogonal_(weights["weight_hh_l0"], gain=radius, generator=generator)
    with torch.no_grad():
        weights["weight_ih_l0"].mul_(0.01 * max(1.0, radius) ** -steps)
        weights["bias_ih_l0"].zero_()
        weights["bias_hh_l0"].zero_()
    return network


def descend(
    network: nn.Module, read_out: nn.Module, problems: Iterable[AddingProblem], learning_rate: float, clip: float | None
) -> Descent:
    """Update copies of network and read-out once per problem, by plain gradient descent."""
    network, read_out = deepcopy(network), deepcopy(read_out)
    weights = [*network.parameters(), *read_out.parameters()]
    optimizer = torch.optim.SGD(weights, learning_rate)
    losses, gradients, first_step = [], [], 0.0
    for problem in problems:
        loss = squared_error(network, read_out, problem)
        if not loss.isfinite():
            break
        optimizer.zero_grad()
        loss.backward()
        gradients.append(nn.utils.clip_grad_norm_(weights, torch.inf if clip is None else clip).item())
        before = nn.utils.parameters_to_vector(weights).detach().clone()
        optimizer.step()
        first_step = first_step or (nn.utils.parameters_to_vector(weights).detach() - before).norm().item()
        losses.append(loss.item())
    return Descent(tuple(losses), tuple(gradients), first_step)


def explode(
    steps: int = 50,
    hidden: int = 64,
    radius: float = 1.1,
    clip: float = 1.0,
    updates: int = 30,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Explosion:
    """Train the same RNN on the same adding problems with the gradient clipped to a norm of `clip`, and without."""
    if radius <= 0 or clip <= 0:
        raise ConfigError(f"radius={radius}, clip={clip}: both must be above 0")
    generator = torch.Generator().manual_seed(seed)
    network = make_exploding(steps, hidden, radius, generator)
    read_out = nn.Linear(hidden, 1)
    draw(read_out, hidden**-0.5, generator)
    problems = [adding_problem(32, steps, generator) for _ in range(updates)]
    norms = gradient_norms(network, problems[0].x, generator)
    free, clipped = (descend(network, read_out, problems, learning_rate, bound) for bound in (None, clip))
    return Explosion(norms, free, clipped)
