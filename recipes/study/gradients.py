"""How far back in time a recurrent network can learn: the norm of d loss / d x_t against the distance in time.

Backpropagation through one step multiplies the gradient by the Jacobian of that step.  In a plain RNN this is
W_hh^T diag(1 - h_t^2), whose product over many steps vanishes or explodes with the spectral radius of W_hh.  Along
the cell state of an LSTM it is diag(f_t): a forget gate near 1 lets the gradient through, and before training its bias
sets it.  `notebooks/03_why_not_a_plain_rnn.ipynb` shows the measurements.

Source: Bengio, Simard and Frasconi 1994; Hochreiter and Schmidhuber 1997; clipping: Pascanu, Mikolov and Bengio 2013.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

BASELINE = 1 / 6
"""Mean squared error in the adding problem of always answering the mean, 1: the variance of the sum."""
EVALUATED = 1024
"""Sequences on which a trained network is scored, drawn after the training sequences."""


def make_network(
    kind: Literal["rnn", "lstm"], hidden: int, generator: torch.Generator, forget_bias: float = 1.0
) -> nn.LSTM | nn.RNN:
    """A one-layer network for inputs (batch, steps, 2); weights are uniform within +-1 / sqrt(hidden), as in torch."""
    network = nn.LSTM(2, hidden, batch_first=True) if kind == "lstm" else nn.RNN(2, hidden, batch_first=True)
    for name, weight in network.named_parameters():
        nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5, generator=generator)
        if kind == "lstm" and "bias" in name:  # the rows of the second of four gates; both biases are added
            weight.data[hidden : 2 * hidden] = forget_bias if name == "bias_ih_l0" else 0.0
    return network


def make_exploding(steps: int, hidden: int, radius: float, generator: torch.Generator) -> nn.LSTM | nn.RNN:
    """A plain RNN with orthogonal recurrent weights times `radius`, its spectral radius, and no bias.

    The input weights are so small that tanh stays in its linear part.  The gradient of the last output with respect to
    x_t then grows as radius**distance, except for the random direction of the few inputs in the hidden space.
    """
    network = make_network("rnn", hidden, generator)
    weights = {name: weight.data for name, weight in network.named_parameters()}
    nn.init.orthogonal_(weights["weight_hh_l0"], gain=radius, generator=generator)
    weights["weight_ih_l0"].mul_(0.01 * max(1.0, radius) ** -steps)
    weights["bias_ih_l0"].zero_()
    weights["bias_hh_l0"].zero_()
    return network


def gradient_norms(network: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over the batch of || d loss / d x_t ||; the loss is a random projection of the last step's output.

    It is computed on a copy of the network without dropout, in float64: far back, the norms are too small for float32.

    Args:
        network: unidirectional, batch first; any number of layers.
        x: (batch, steps, input_size)
        generator: draws the projection, a vector of norm 1; the same seed gives the same loss.
    Returns:
        (steps,), float64, by distance: index 0 is the last step, index steps - 1 the first.
    """
    x = x.double().detach().requires_grad_()
    output, _ = deepcopy(network).double().eval()(x)
    projection = torch.randn(output.shape[2], generator=generator, dtype=torch.float64)
    loss = (output[:, -1] @ projection / projection.norm()).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.norm(dim=2).mean(0).flip(0)


@dataclass(frozen=True)
class AddingProblem:
    """A batch of the adding problem."""

    x: Tensor
    """(batch, steps, 2): a number from 0 to 1, and its mark: 1 for the two numbers to add, else 0."""
    target: Tensor
    """(batch,): the sum of the two marked numbers."""


def adding_problem(batch: int, steps: int, generator: torch.Generator) -> AddingProblem:
    """Draw numbers from 0 to 1 and mark one in each half of the sequence; the sum of the two is the target.

    Source: Hochreiter and Schmidhuber 1997, experiment 4, with the marks as in Arjovsky, Shah and Bengio 2016.
    """
    numbers = torch.rand(batch, steps, generator=generator)
    marks = torch.zeros(batch, steps)
    for start, end in ((0, steps // 2), (steps // 2, steps)):
        marks[torch.arange(batch), torch.randint(start, end, (batch,), generator=generator)] = 1.0
    return AddingProblem(torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1))


class Adder(nn.Module):
    """A recurrent network and a linear layer that reads the sum from its last output."""

    def __init__(self, recurrent: nn.LSTM | nn.RNN, generator: torch.Generator) -> None:
        super().__init__()
        self.recurrent, self.read_out = recurrent, nn.Linear(recurrent.hidden_size, 1)
        for weight in self.read_out.parameters():
            nn.init.uniform_(weight, -(recurrent.hidden_size**-0.5), recurrent.hidden_size**-0.5, generator=generator)

    def forward(self, problem: AddingProblem) -> Tensor:
        """Mean squared error of the sums."""
        output, _ = self.recurrent(problem.x)
        return (self.read_out(output[:, -1])[:, 0] - problem.target).square().mean()


@dataclass(frozen=True)
class Descent:
    """The updates of a training."""

    losses: list[float]
    """Mean squared error before each update; ends early when it is no longer finite."""
    gradients: list[float]
    """Norm of the gradient over all weights at each update, before clipping."""


def descend(adder: Adder, problems: Iterable[AddingProblem], optimizer: torch.optim.Optimizer, clip: float) -> Descent:
    """Update the weights once for each problem; the gradient's norm over all weights is clipped at `clip`."""
    losses, gradients = [], []
    for problem in problems:
        loss = adder(problem)
        if not loss.isfinite():
            break
        optimizer.zero_grad()
        loss.backward()
        gradients.append(nn.utils.clip_grad_norm_(adder.parameters(), clip).item())
        optimizer.step()
        losses.append(loss.item())
    return Descent(losses, gradients)


def learn_to_add(
    kind: Literal["rnn", "lstm"], steps: int, hidden: int, updates: int, seed: int, learning_rate: float = 1e-2
) -> tuple[Descent, float]:
    """Train on `updates` batches of 32 sequences; the second value is the mean squared error on new sequences.

    Both kinds see the same sequences.
    """
    generator, problems = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    adder = Adder(make_network(kind, hidden, generator), generator)
    optimizer = torch.optim.Adam(adder.parameters(), learning_rate)
    descent = descend(adder, (adding_problem(32, steps, problems) for _ in range(updates)), optimizer, clip=1.0)
    with torch.no_grad():
        return descent, adder(adding_problem(EVALUATED, steps, problems)).item()
