"""Measure a bundle: `python -m recipes.evaluate --data.root DIR` prints a table; --json and --pictures keep it.

Protocols: `twelve` is the official 12-class test archive, `words` every word of a part of Speech Commands,
`live` commands placed in long audio and heard through the Listener, `connected` sequences of commands (for a bundle
with a CTC head), `speed` what it costs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from recipes.connected import Connected, draw_connected, evaluate_connected
from recipes.live import Live, evaluate_live
from recipes.metrics import TWELVE, Counts, Share, fold, summarize
from recipes.speed import Speed, evaluate_speed
from speech.audio import read
from speech.errors import DataError, SpeechError
from speech.recognizer import DEFAULT_MODEL, UNKNOWN, Recognizer
from speech.training.data import ARCHIVE_FOLDER, Corpus, Waveform, index_others, index_words

PROTOCOLS = ("twelve", "words", "live", "connected", "speed")


@dataclass(frozen=True)
class Evaluation:
    """A confusion matrix and what follows from it."""

    title: str
    labels: tuple[str, ...]
    confusion: Counts
    """(labels, labels): rows what was said, columns what was recognised."""
    mistakes: list[str] = field(default_factory=list)
    """One line for each error."""

    @property
    def accuracy(self) -> Share:
        return Share(int(np.trace(self.confusion)), int(self.confusion.sum()))

    def __str__(self) -> str:
        summary = summarize(self.confusion, self.labels)
        lines = [
            self.title,
            f"  {'accuracy, all classes':28}{self.accuracy}",
            f"  {'accuracy, 12 classes':28}{summary.accuracy}",
            f"  {'keywords right':28}{summary.keywords}",
            f"  {'unknown taken for a command':28}{summary.unknown_as_command}",
            f"  {'silence taken for a command':28}{summary.silence_as_command}",
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
        summary = summarize(self.confusion, self.labels)
        return {
            "title": self.title,
            "accuracy": self.accuracy.as_dict(),
            "accuracy_12": summary.accuracy.as_dict(),
            "keywords": summary.keywords.as_dict(),
            "unknown_as_command": summary.unknown_as_command.as_dict(),
            "silence_as_command": summary.silence_as_command.as_dict(),
            "recall_12": {label: share.as_dict() for label, share in summary.recall.items()},
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
        }


def confuse(
    recognizer: Recognizer, clips: Iterable[tuple[Waveform, str, str]], labels: Sequence[str], title: str
) -> Evaluation:
    """Classify (waveform at the bundle's rate, label, name) clips and count."""
    known = recognizer.info.classes
    confusion = np.zeros((len(known), len(known)), np.int64)
    mistakes = []
    for waveform, label, name in clips:
        prediction = recognizer.classify(waveform, recognizer.info.sample_rate_hz)
        truth = label if label in known else UNKNOWN
        confusion[known.index(truth), known.index(prediction.word)] += 1
        if prediction.word != truth:
            mistakes.append(f"{name}: {label} taken for {prediction.word} at {prediction.confidence:.2f}")
    if not confusion.sum():
        raise DataError(f"nothing to evaluate for: {title}")
    if tuple(labels) != known:
        confusion = fold(confusion, known, labels)
    return Evaluation(title, tuple(labels), confusion, mistakes)


def evaluate_twelve(recognizer: Recognizer, root: Path) -> Evaluation:
    """The official 12-class archive (or the part of it that is there)."""
    folder = root / ARCHIVE_FOLDER
    paths = sorted(folder.glob("*/*.wav"))
    if not paths:
        raise DataError(f"no clips under {folder}: unpack speech_commands_test_set_v0.02 there")
    strange = {path.parent.name for path in paths} - set(TWELVE)
    if strange:
        raise DataError(f"{folder} holds folders that are no class: {', '.join(sorted(strange))}")
    rate = recognizer.info.sample_rate_hz
    clips = ((read(path, rate), path.parent.name, f"{path.parent.name}/{path.name}") for path in paths)
    return confuse(recognizer, clips, TWELVE, f"12 classes, {len(paths)} clips of the official test archive")


def evaluate_words(recognizer: Recognizer, corpus: Corpus, part: str) -> Evaluation:
    """Every word of a part of Speech Commands, over all labels of the bundle."""
    chosen = corpus.select(part, "words")
    clips = ((corpus[i], corpus.recordings[i].word, str(corpus.recordings[i].path)) for i in chosen)
    return confuse(recognizer, clips, recognizer.info.classes, f"all words, {part}, {len(chosen)} clips")


def draw_confusion(evaluation: Evaluation, target: Path) -> None:
    """The confusion matrix as a picture: shares of each row, counts written in."""
    from matplotlib.figure import Figure

    n = len(evaluation.labels)
    shares = evaluation.confusion / np.maximum(1, evaluation.confusion.sum(1, keepdims=True))
    figure = Figure(figsize=(0.42 * n + 2.5, 0.42 * n + 2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(evaluation.confusion), strict=True):
        axes.text(
            j,
            i,
            evaluation.confusion[i, j],
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[i, j] > 0.5 else "black",
        )
    axes.set_xticks(range(n), evaluation.labels, rotation=60, ha="right")
    axes.set_yticks(range(n), evaluation.labels)
    axes.set(
        xlabel="recognised",
        ylabel="said",
        title=f"{evaluation.title}\naccuracy {100 * evaluation.accuracy.value:.1f} %",
    )
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.7)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (default: the shipped one)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.add_argument(
        "--data.cache", dest="cache", type=Path, metavar="DIR", help="decoded audio (default: DIR/cache)"
    )
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=["twelve", "words", "speed"])
    parser.add_argument(
        "--part", choices=("validation", "testing"), default="testing", help="for words, live, connected"
    )
    parser.add_argument("--mixtures", type=int, default=200, help="how many, for connected (default: 200)")
    parser.add_argument("--held-out", type=float, default=0.12, help="as data.held_out in training (default: 0.12)")
    parser.add_argument("--mistakes", action="store_true", help="list every clip that was not recognised")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write confusion matrices as PNG")
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the protocols asked for, print each, return all figures."""
    recognizer = Recognizer.load(arguments.model)
    figures: dict[str, object] = {"model": str(arguments.model)}

    @cache
    def corpus() -> Corpus:
        recordings = index_words(arguments.root, arguments.held_out) + index_others(arguments.root)
        return Corpus(recordings, arguments.cache or arguments.root / "cache")

    run: dict[str, Callable[[], Evaluation | Live | Connected | Speed]] = {
        "twelve": lambda: evaluate_twelve(recognizer, arguments.root),
        "words": lambda: evaluate_words(recognizer, corpus(), arguments.part),
        "live": lambda: evaluate_live(recognizer, corpus(), arguments.part),
        "connected": lambda: evaluate_connected(recognizer, corpus(), arguments.part, arguments.mixtures),
        "speed": lambda: evaluate_speed(arguments.model),
    }
    for protocol in arguments.protocol:
        result = run[protocol]()
        print(result, end="\n\n", flush=True)
        if isinstance(result, Evaluation):
            if arguments.pictures:
                draw_confusion(result, arguments.pictures / f"confusion_{protocol}.png")
            if arguments.mistakes:
                print("\n".join(result.mistakes), end="\n\n")
        if isinstance(result, Connected) and arguments.pictures:
            draw_connected(result, arguments.pictures / "connected.png")
        figures[protocol] = result.as_dict()
    return figures


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        figures = evaluate(arguments)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(figures, indent=1))
    except SpeechError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
