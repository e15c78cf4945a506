"""Single words: clips through `Recognizer.classify`, the confusion matrix and the calibration of the confidence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes.data.recordings import ARCHIVE_FOLDER
from recipes.data.sounds import Waveform
from recipes.metrics import Counts, Judged, Share, calibration_error, classes_of, reliability, summarize
from recipes.protocols.scenes import Recordings
from speech.bundle import UNKNOWN
from speech.errors import DataError
from speech.recognizer import Recognizer
from speech.sound.files import read


@dataclass(frozen=True)
class Mistake:
    """A clip that was classified wrongly."""

    name: str
    said: str
    heard: str
    confidence: float
    waveform: Waveform

    def __str__(self) -> str:
        return f"{self.name}: {self.said} taken for {self.heard} at {self.confidence:.2f}"


@dataclass(frozen=True)
class Evaluation:
    """A confusion matrix and the figures derived from it."""

    title: str
    labels: tuple[str, ...]
    commands: tuple[str, ...]
    """The labels that are commands.  Other words count as unknown in the figures for the official classes."""
    confusion: Counts
    """(labels, labels): rows are the true labels, columns the recognised ones."""
    mistakes: list[Mistake] = field(default_factory=list)
    judged: list[tuple[float, bool]] = field(default_factory=list)
    """For each clip: the confidence and whether the answer is right."""

    @property
    def accuracy(self) -> Share:
        return Share(int(np.trace(self.confusion)), int(self.confusion.sum()))

    @property
    def calibration_error(self) -> float:
        return calibration_error(self.judged)

    def __str__(self) -> str:
        summary = summarize(self.confusion, self.labels, self.commands)
        lines = [
            self.title,
            f"  {'accuracy, all classes':28}{self.accuracy}",
            f"  {'accuracy, official classes':28}{summary.accuracy}",
            f"  {'keywords right':28}{summary.keywords}",
            f"  {'unknown taken for a command':28}{summary.unknown_as_command}",
            f"  {'silence taken for a command':28}{summary.silence_as_command}",
            f"  {'calibration error':28}{self.calibration_error:8.3f}",
            f"  {'class':12}{'recall':>9}{'precision':>11}{'clips':>7}   most often taken for",
        ]
        said, heard = self.confusion.sum(1), self.confusion.sum(0)
        for i, label in enumerate(self.labels):
            if not said[i]:
                continue
            wrong = self.confusion[i].copy()
            wrong[i] = 0
            worst = ", ".join(f"{self.labels[j]} {wrong[j]}" for j in wrong.argsort()[::-1][:3] if wrong[j])
            recall, precision = 100 * self.confusion[i, i] / said[i], 100 * self.confusion[i, i] / max(1, heard[i])
            lines.append(f"  {label:12}{recall:7.1f} %{precision:9.1f} %{said[i]:7}   {worst}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        summary = summarize(self.confusion, self.labels, self.commands)
        official = {"accuracy_12": summary.accuracy, "recall_12": summary.recall, "keywords": summary.keywords}
        taken = {f"{kind}_as_command": getattr(summary, f"{kind}_as_command") for kind in ("unknown", "silence")}
        judged = {"calibration_error": self.calibration_error, "reliability": reliability(self.judged)}
        confusion = {"labels": self.labels, "confusion": self.confusion}
        return {"title": self.title, "accuracy": self.accuracy} | official | taken | judged | confusion


def confuse(
    recognizer: Recognizer,
    clips: Iterable[tuple[Waveform, str, str]],
    commands: Sequence[str],
    title: str,
    official: bool = False,
) -> Evaluation:
    """Classify clips and count the results.

    Args:
        clips: waveform (time,) at the bundle's rate, true label, name.
        official: the classes are the commands, `_unknown_` and `_silence_`, instead of all labels of the bundle; other
            words count as `_unknown_`, said or recognised.
    Raises:
        DataError: there are no clips.
    """
    known = recognizer.info.classes
    labels = classes_of(commands) if official else known

    def folded(word: str) -> int:
        return labels.index(word if word in labels else UNKNOWN)

    confusion = np.zeros((len(labels), len(labels)), np.int64)
    mistakes, judged = [], []
    for waveform, label, name in clips:
        prediction = recognizer.classify(waveform, recognizer.info.sample_rate_hz)
        said, found = folded(label), folded(prediction.word)
        confusion[said, found] += 1
        if said != found:
            mistakes.append(Mistake(name, label, prediction.word, prediction.confidence, waveform))
        judged.append((prediction.confidence, said == found))
    if not judged:
        raise DataError(f"nothing to evaluate for: {title}")
    return Evaluation(title, labels, tuple(commands), confusion, mistakes, judged)


def evaluate_twelve(recognizer: Recognizer, root: Path, commands: Sequence[str]) -> Evaluation:
    """Evaluate the official 12-class archive, or as much of it as the data folder holds."""
    folder = root / ARCHIVE_FOLDER
    paths = sorted(folder.glob("*/*.wav"))
    if not paths:
        raise DataError(f"no clips under {folder}: unpack speech_commands_test_set_v0.02 there")
    strange = {path.parent.name for path in paths} - set(classes_of(commands))
    if strange:
        raise DataError(f"{folder} holds folders that are not a class: {', '.join(sorted(strange))}")
    rate = recognizer.info.sample_rate_hz
    clips = ((read(path, rate), path.parent.name, f"{path.parent.name}/{path.name}") for path in paths)
    title = f"{len(commands) + 2} classes, {len(paths)} clips of the official test archive"
    return confuse(recognizer, clips, commands, title, official=True)


def evaluate_words(recognizer: Recognizer, recordings: Recordings, part: str, commands: Sequence[str]) -> Evaluation:
    """Evaluate every word of a part of Speech Commands, over all labels of the bundle."""
    chosen = recordings.select(part, "words")
    clips = ((recordings[i], recordings.recordings[i].word, str(recordings.recordings[i].path)) for i in chosen)
    return confuse(recognizer, clips, commands, f"all words, {part}, {len(chosen)} clips")


def plot_confusion(evaluation: Evaluation, target: Path) -> None:
    """Draw the confusion matrix: colours are shares of the row, numbers are counts."""
    from matplotlib.figure import Figure

    n = len(evaluation.labels)
    shares = evaluation.confusion / np.maximum(1, evaluation.confusion.sum(1, keepdims=True))
    figure = Figure(figsize=(0.42 * n + 2.5, 0.42 * n + 2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(evaluation.confusion), strict=True):
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, evaluation.confusion[i, j], ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(n), evaluation.labels, rotation=60, ha="right")
    axes.set_yticks(range(n), evaluation.labels)
    axes.set(xlabel="recognised", ylabel="said")
    axes.set_title(f"{evaluation.title}\naccuracy {100 * evaluation.accuracy.value:.1f} %")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.7)
    figure.savefig(target, dpi=110)


def plot_reliability(judged: Judged, title: str, target: Path) -> None:
    """Draw the share right against the confidence, with 95 % intervals and the number of answers."""
    from matplotlib.figure import Figure

    bins = reliability(judged)
    x, y = np.array([b.confidence for b in bins]), np.array([b.right.value for b in bins])
    low, high = (np.array([b.right.interval[side] for b in bins]) for side in (0, 1))
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    axes.errorbar(x, y, [np.maximum(0, y - low), np.maximum(0, high - y)], marker="o", capsize=3, label="measured")
    for b, place in zip(bins, zip(x, y, strict=True), strict=True):
        axes.annotate(str(b.right.total), place, (6, -12), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share right")
    axes.set_title(f"{title}\nexpected calibration error {calibration_error(judged):.3f}", fontsize=10)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)
