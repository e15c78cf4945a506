"""Measure how far gradients reach back in time: `python -m recipes.study.gradients`; --json and --picture write files.

Measured are an untrained RNN and untrained LSTMs with several forget-gate biases; an RNN and an LSTM after training on
the adding problem; and an RNN whose gradient explodes, with and without clipping.  --seed determines all random draws.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.study.rnn_gradients import (
    BASELINE,
    AddingConfig,
    Descent,
    Explosion,
    Network,
    Trained,
    adding_problem,
    explode,
    gradient_norms,
    make_network,
    train_adding,
)
from speech.errors import exit_status

BIASES = (-1, 0, 1, 2)
RADIUS, CLIP = 1.1, 1.0
MEASURED = 64
"""Number of sequences over which the norms are averaged."""


@dataclass(frozen=True)
class Reach:
    """All measurements of the command."""

    config: AddingConfig
    new: dict[str, Tensor]
    """Gradient norms of untrained networks by distance, (steps,) each."""
    trained: dict[str, Tensor]
    """The same for trained networks."""
    adding: dict[str, Trained]
    explosion: Explosion

    @property
    def distances(self) -> list[int]:
        """The table's columns, in steps; for 100 steps: 0, 10, 25, 50, 99."""
        steps = len(next(iter(self.new.values())))
        return sorted({0, steps // 10, steps // 4, steps // 2, steps - 1})

    def __str__(self) -> str:
        rows = {**self.new, **self.trained}
        config, rnn = self.config, f"RNN of spectral radius {RADIUS:g}, {self.config.steps} steps"
        return "\n".join(
            [
                "norm of d loss / d x_t by distance in steps, relative to distance 0",
                f"  {'':26}" + "".join(f"{distance:>10}" for distance in self.distances),
                *(f"  {name:26}" + "".join(f"{x:10.1e}" for x in self.at(norms)) for name, norms in rows.items()),
                f"adding problem, {config.steps} steps, {config.updates} updates: mean squared error",
                f"  {'always answering 1':26}{BASELINE:10.4f}",
                *(f"  {name:26}{trained.error:10.4f}" for name, trained in self.adding.items()),
                f"exploding: {rnn}: norm at distance {config.steps - 1} is "
                f"{relative(self.explosion.norms)[-1]:.1f} x that at distance 0",
                f"  {'':26}{'gradient':>10}{'1st step':>10}{'loss':>10}{'at last':>10}{'updates':>10}",
                describe("not clipped", self.explosion.free),
                describe(f"clipped at {CLIP:g}", self.explosion.clipped),
            ]
        )

    def at(self, norms: Tensor) -> list[float]:
        return relative(norms)[self.distances].tolist()

    def as_dict(self) -> dict[str, Any]:
        explosion = self.explosion
        return {
            "config": asdict(self.config),
            "relative_norms": {name: relative(norms).tolist() for name, norms in {**self.new, **self.trained}.items()},
            "baseline": BASELINE,
            "adding": {name: {"error": t.error, "losses": t.losses} for name, t in self.adding.items()},
            "exploding": {
                "radius": RADIUS,
                "clip": CLIP,
                "relative_norms": relative(explosion.norms).tolist(),
                "free": asdict(explosion.free),
                "clipped": asdict(explosion.clipped),
            },
        }


def relative(norms: Tensor) -> Tensor:
    return norms / norms[0]


def describe(name: str, descent: Descent) -> str:
    """One row: norms of the first gradient and update, first and last loss, number of updates with a finite loss."""
    first, last = descent.losses[0], descent.losses[-1]
    return (
        f"  {name:26}{descent.gradients[0]:10.1f}{descent.first_step:10.2f}"
        f"{first:10.2f}{last:10.2g}{len(descent.losses):10}"
    )


def measure(steps: int, config: AddingConfig) -> Reach:
    """Measure everything; gradients are measured over `steps` steps, training uses `config.steps`."""
    x = adding_problem(MEASURED, steps, torch.Generator().manual_seed(config.seed)).x

    def norms(network: Network) -> Tensor:
        return gradient_norms(network, x, torch.Generator().manual_seed(config.seed))

    def init() -> torch.Generator:
        return torch.Generator().manual_seed(config.seed)

    new = {"RNN, new": norms(make_network("rnn", config.hidden, init()))}
    for bias in BIASES:
        new[f"LSTM, new, forget bias {bias:2}"] = norms(make_network("lstm", config.hidden, init(), bias))
    adding = {"RNN": train_adding("rnn", config), "LSTM": train_adding("lstm", config)}
    trained = {f"{name}, trained": norms(result.network) for name, result in adding.items()}
    explosion = explode(config.steps, config.hidden, RADIUS, CLIP, seed=config.seed)
    return Reach(config, new, trained, adding, explosion)


def draw(reach: Reach, target: Path) -> None:
    """Draw norms by distance, untrained and trained, and the losses of the exploding case, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    new, trained, losses = figure.subplots(1, 3)
    for name, norms in reach.new.items():
        new.plot(relative(norms), "k" if name.startswith("RNN") else "-", label=name.replace(", new", ""))
    new.plot(relative(reach.explosion.norms), "k:", label=f"RNN, spectral radius {RADIUS:g}")
    for (name, norms), style in zip(reach.trained.items(), ("k", "C3"), strict=True):
        trained.plot(relative(norms), style, label=name)
    trained.axvline(reach.config.steps - 1, color="gray", linestyle=":", label="length in training")
    for name, descent, style in (
        ("not clipped", reach.explosion.free, "C3"),
        (f"clipped at norm {CLIP:g}", reach.explosion.clipped, "C0"),
    ):
        losses.plot(descent.losses, style, label=name)
    losses.axhline(BASELINE, color="gray", linestyle=":", label="always answering 1")
    for axes, title in (
        (new, "New networks"),
        (trained, f"After {reach.config.updates} updates on the adding problem"),
    ):
        axes.set(xlabel="distance from the last step (steps)", ylabel="norm of d loss / d x_t, relative to distance 0")
        axes.set(title=title, yscale="log")
    new.set_ylim(bottom=1e-12)  # smaller values are negligible in single precision
    losses.set(xlabel="update", ylabel="mean squared error", yscale="log")
    losses.set_title(f"Exploding gradient, RNN of spectral radius {RADIUS:g}")
    for axes in (new, trained, losses):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110, format="png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.study.gradients", description=__doc__.split("\n")[0])
    default = AddingConfig()
    parser.add_argument("--steps", type=int, default=100, help="steps over which gradients are measured (default: 100)")
    parser.add_argument(
        "--lag", type=int, default=default.steps, help="steps of the adding problem in training (default: %(default)s)"
    )
    parser.add_argument("--hidden", type=int, default=default.hidden, help="recurrent units (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=default.updates, help="training updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="random seed (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves as PNG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def run() -> None:
        config = AddingConfig(arguments.lag, arguments.hidden, updates=arguments.updates, seed=arguments.seed)
        for target in (arguments.json, arguments.picture):
            if target:
                target.parent.mkdir(parents=True, exist_ok=True)
        reach = measure(arguments.steps, config)
        print(reach)
        if arguments.json:
            arguments.json.write_text(json.dumps(reach.as_dict(), indent=1, allow_nan=False))
        if arguments.picture:
            draw(reach, arguments.picture)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
