"""Shares, rates, calibration and figures of a confusion matrix, for training and evaluation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, chi2

from speech.bundle import SILENCE, UNKNOWN

Counts = NDArray[np.int64]
DRAWS = 2000
"""Resamples of the bootstrap."""


@dataclass(frozen=True)
class Share:
    """A share with its 95 % Wilson interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Source: Wilson 1927."""
        if not self.total:
            return (0.0, 1.0)
        found = binomtest(self.hits, self.total).proportion_ci(method="wilson")
        return (float(found.low), float(found.high))

    def __str__(self) -> str:
        if not self.total:
            return "     -"
        low, high = self.interval
        return f"{100 * self.value:6.2f} %  [{100 * low:.1f}, {100 * high:.1f}]  {self.hits}/{self.total}"

    def as_dict(self) -> dict[str, object]:
        return {"value": self.value if self.total else None, "interval_95": self.interval, **vars(self)}


@dataclass(frozen=True)
class Rate:
    """Events per hour with the exact 95 % interval of a Poisson mean."""

    count: int
    hours: float

    @property
    def value(self) -> float:
        return self.count / self.hours if self.hours else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Source: Garwood 1936."""
        if not self.hours:
            return (0.0, float("inf"))
        low = chi2.ppf(0.025, 2 * self.count) / 2 if self.count else 0.0
        return (float(low / self.hours), float(chi2.ppf(0.975, 2 * self.count + 2) / 2 / self.hours))

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.count + other.count, self.hours + other.hours)

    def __str__(self) -> str:
        if not self.hours:
            return "     -"
        low, high = self.interval
        return f"{self.value:6.2f} per hour  [{low:.1f}, {high:.1f}]  {self.count} in {self.hours:.2f} h"

    def as_dict(self) -> dict[str, object]:
        value, interval = (self.value, self.interval) if self.hours else (None, None)
        return {"value": value, "interval_95": interval, **vars(self)}


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self)

    def __format__(self, sign: str) -> str:
        """In percent; `+` puts a sign before every number."""
        return f"{100 * self.value:{sign}6.2f} %  [{100 * self.low:{sign}.1f}, {100 * self.high:{sign}.1f}]"

    def as_dict(self) -> dict[str, object]:
        return {"value": self.value, "interval_95": [self.low, self.high]}


def estimate(value: float, statistic: Callable[..., np.ndarray], *counts: np.ndarray) -> Estimate:
    """A figure with its interval by bootstrap over mixtures.

    A binomial interval does not apply: the errors of a mixture are correlated and may exceed its number of commands.

    Args:
        value: the figure.
        statistic: computes the figure from sums over mixtures, one argument for each of `counts`.
        counts: (mixtures,) each.
    """
    if len(counts[0]) < 2:
        return Estimate(value, value, value)
    found = bootstrap(
        counts, lambda *some, axis: statistic(*(x.sum(axis) for x in some)), paired=True, vectorized=True,
        n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Estimate(value, float(found.low), float(found.high))


def classes_of(commands: Sequence[str]) -> tuple[str, ...]:
    """The classes of the official protocol: the commands, `_unknown_`, `_silence_`."""
    return (*commands, UNKNOWN, SILENCE)


def fold(confusion: Counts, labels: Sequence[str], commands: Sequence[str]) -> Counts:
    """Add rows and columns of other words to those of `_unknown_`: (classes, classes), ordered as in `classes_of`."""
    onto = classes_of(commands)
    place = [onto.index(label if label in onto else UNKNOWN) for label in labels]
    folded = np.zeros((len(onto), len(onto)), np.int64)
    np.add.at(folded, (np.array(place)[:, None], np.array(place)[None]), confusion)
    return folded


@dataclass(frozen=True)
class Summary:
    """The figures of the official protocol, which has 12 classes with ten commands."""

    accuracy: Share
    keywords: Share
    unknown_as_command: Share
    silence_as_command: Share
    recall: dict[str, Share]

    @property
    def balanced(self) -> float:
        """Mean recall of the classes that occur; rare words count as much as common ones."""
        return float(np.mean([share.value for share in self.recall.values() if share.total]))


def summarize(confusion: Counts, labels: Sequence[str], commands: Sequence[str]) -> Summary:
    """The figures of a confusion matrix (true, predicted) over `labels`."""
    classes, folded, n = classes_of(commands), fold(confusion, labels, commands), len(commands)
    totals = folded.sum(1)

    def taken(label: str) -> Share:
        row = folded[classes.index(label)]
        return Share(int(row[:n].sum()), int(row.sum()))

    return Summary(
        accuracy=Share(int(np.trace(folded)), int(folded.sum())),
        keywords=Share(int(np.trace(folded[:n, :n])), int(totals[:n].sum())),
        unknown_as_command=taken(UNKNOWN),
        silence_as_command=taken(SILENCE),
        recall={label: Share(int(folded[i, i]), int(totals[i])) for i, label in enumerate(classes)},
    )


Judged = Sequence[tuple[float, bool]]
"""For each answer: its confidence, 0..1, and whether it is right."""


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence lies in one bin of the reliability diagram."""

    confidence: float
    """Mean confidence of the answers."""
    right: Share


def reliability(judged: Judged, n_bins: int = 10) -> list[Bin]:
    """The reliability diagram: bins of confidence of equal width, without empty ones."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(n_bins)]
    for confidence, right in judged:
        bins[min(n_bins - 1, int(confidence * n_bins))].append((confidence, right))
    means = [(np.mean(some, axis=0).tolist(), len(some)) for some in bins if some]
    return [Bin(confidence, Share(round(right * n), n)) for (confidence, right), n in means]


def calibration_error(judged: Judged) -> float:
    """Expected calibration error: mean difference of confidence and share right over the bins, weighted by size.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
    """
    bins = reliability(judged)
    total = sum(b.right.total for b in bins)
    return sum(b.right.total * abs(b.confidence - b.right.value) for b in bins) / total if total else float("nan")


def write_json(target: Path, figures: object) -> None:
    """Write figures as JSON: results by their `as_dict` or their fields.  A missing folder is created."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic | Path):
            return str(value) if isinstance(value, Path) else value.tolist()
        return value.as_dict() if hasattr(value, "as_dict") else vars(value)

    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=1, default=plain), encoding="utf-8")
