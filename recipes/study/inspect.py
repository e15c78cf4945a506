"""Plot a network's activations for an utterance: `python -m recipes.study.inspect FILE`.

The picture shows the waveform, MFCC, the gates of every LSTM layer and direction, the attention, and the posteriors
that the network would give if the utterance ended at each moment.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speech.bundle import DEFAULT_MODEL
from speech.errors import ConfigError, exit_status
from speech.listener import Listener
from speech.recognizer import SHORTEST_S, WHOLE_S, Recognizer
from speech.results import Examined
from speech.segment import high_pass
from speech.sound.files import Block, read
from speech.trace import LayerGates, Trace, Tracer, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOP_S = 0.05
"""Interval between the moments at which posteriors of the audio so far are computed."""
TOP = 5
"""Number of labels in the picture."""


@dataclass(frozen=True)
class Inspection:
    """An utterance of a recording and the activations of a network for it."""

    labels: tuple[str, ...]
    sample_rate_hz: int
    recording: Block
    """(time,)"""
    start_s: float
    """Start of the utterance in the recording."""
    utterance: Block
    """(time,) the network's input."""
    trace: Trace
    """The activations; times are in seconds from the start of the utterance."""
    heard_s: Values
    """(moments,) times of `posteriors`, in seconds from the start of the utterance."""
    posteriors: Values
    """(moments, labels): posteriors of the audio up to each moment; for a CTC head, of each step of the whole."""

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.utterance) / self.sample_rate_hz

    def best(self, n: int) -> list[tuple[str, float]]:
        """The `n` best labels with their posteriors; for a CTC head, the maxima over all steps."""
        scores = np.atleast_2d(self.trace.scores).max(0)
        return [(self.labels[i], float(scores[i])) for i in scores.argsort()[::-1][:n]]


def inspect(model: Path, recording: Block, at_s: float | None = None) -> Inspection:
    """Trace a network on one utterance of a recording.

    Args:
        model: a bundle.
        recording: (time,) float32 in -1..1 at the bundle's rate.  Up to `WHOLE_S` the whole recording is the
            utterance; a longer one is cut into utterances as in a stream.
        at_s: a time within the wanted utterance; default: the utterance with the most confident result.
    Raises:
        BundleError: `model` is not a bundle with an LSTM.
        ConfigError: there is no utterance, or none at `at_s`.
    """
    recognizer, tracer = Recognizer.load(model), Tracer(model)
    rate = recognizer.info.sample_rate_hz
    if len(recording) <= WHOLE_S * rate:
        duration_s = len(recording) / rate
        if at_s is not None and not 0 <= at_s <= duration_s:
            raise ConfigError(f"no utterance at {at_s:g} s: the recording is {duration_s:.2f} s long")
        missing = max(0, round(SHORTEST_S * rate) - len(recording))
        start_s, utterance = 0.0, high_pass(np.pad(recording, (0, missing)))
    else:
        start_s, utterance = find(recognizer, recording, at_s)
    trace = tracer.trace(utterance)
    heard_s, posteriors = (trace.step_s, trace.scores) if recognizer.info.has_steps else so_far(recognizer, utterance)
    return Inspection(recognizer.info.classes, rate, recording, start_s, utterance, trace, heard_s, posteriors)


def find(recognizer: Recognizer, recording: Block, at_s: float | None) -> tuple[float, Block]:
    """Find the utterance described in `inspect`; return its start in seconds and its waveform."""
    examined: list[Examined] = []
    listener = Listener(recognizer, on_utterance=examined.append)
    listener.feed(recording)
    listener.flush()
    spans = {
        (one.start_s, one.start_s + len(one.waveform) / recognizer.info.sample_rate_hz): one
        for one in examined
        if len(one.waveform)
    }
    found = [one for (begin, end), one in spans.items() if at_s is None or begin <= at_s <= end]
    if not found:
        where = "" if at_s is None else f" at {at_s:g} s"
        there = ", ".join(f"{begin:.2f}..{end:.2f} s" for begin, end in spans) or "none"
        raise ConfigError(f"no utterance{where}, or only talk; utterances: {there}")
    best = max(found, key=_confidence)
    return best.start_s, best.waveform


def _confidence(examined: Examined) -> tuple[bool, float]:
    """Sort key: reported utterances are above rejected ones, each by confidence."""
    words = examined.detections or [examined.rejection]
    return bool(examined.detections), max(word.confidence for word in words if word)


def so_far(recognizer: Recognizer, utterance: Block) -> tuple[Values, Values]:
    """Times (moments,) in seconds, and the posteriors (moments, labels) of the audio up to each."""
    rate = recognizer.info.sample_rate_hz
    ends = np.append(np.arange(round(SHORTEST_S * rate), len(utterance), round(HOP_S * rate)), len(utterance))
    posteriors = np.concatenate([recognizer.scores(utterance[None, :end]) for end in ends])
    return (ends / rate).astype(np.float32), posteriors


def plot(inspection: Inspection) -> "Figure":
    """Plot all panels with a common time axis; the first panel shows a longer recording as a whole."""
    from matplotlib.figure import Figure

    trace, start_s, end_s = inspection.trace, inspection.start_s, inspection.end_s
    is_longer = len(inspection.recording) > len(inspection.utterance)
    heights = [*[0.8] * is_longer, 1, 1.6, *[0.9] * len(trace.gates), *[0.9] * (len(trace.attention) > 0), 1.6]
    figure = Figure(figsize=(10, 1.35 * sum(heights)), layout="constrained")
    panels = list(figure.subplots(len(heights), height_ratios=heights))
    if is_longer:
        overview = panels.pop(0)
        plot_waveform(inspection.recording, inspection.sample_rate_hz, 0.0, overview)
        overview.axvspan(start_s, end_s, color="gold", alpha=0.3)
        overview.set_title("the whole recording; the marked utterance is shown below", loc="left", fontsize="medium")
    plot_waveform(inspection.utterance, inspection.sample_rate_hz, start_s, panels[0])
    plot_mfcc(inspection, panels[1])
    for gates, panel in zip(trace.gates, panels[2:], strict=False):
        plot_gates(start_s + trace.step_s, gates, panel)
    panels[2].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    if len(trace.attention):
        plot_attention(inspection, panels[-2])
    plot_posteriors(inspection, panels[-1])
    for panel in panels:
        panel.set_xlim(start_s, end_s)
        panel.tick_params(labelbottom=panel is panels[-1])
    words = ", ".join(f"{label.strip('_')} {score:.2f}" for label, score in inspection.best(3))
    figure.suptitle(f"{start_s:.2f} to {end_s:.2f} s: {words}")
    return figure


def plot_waveform(waveform: Block, sample_rate_hz: int, start_s: float, panel: "Axes") -> None:
    """Plot a waveform that begins at `start_s`."""
    panel.plot(start_s + np.arange(len(waveform)) / sample_rate_hz, waveform, linewidth=0.5)
    panel.set_ylabel("waveform\n(full scale 1)")
    panel.margins(x=0)


def plot_mfcc(inspection: Inspection, panel: "Axes") -> None:
    """Plot the MFCC; each coefficient is normalised, because the first would dominate the picture."""
    features, start_s = inspection.trace.features, inspection.start_s
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    numbers = np.arange(features.shape[1])
    times = start_s + inspection.trace.frame_s
    panel.pcolormesh(times, numbers, scaled.T, vmin=-2.5, vmax=2.5, cmap="RdBu_r", rasterized=True)
    panel.set_ylabel("MFCC\n(coefficient)")


def plot_gates(times: Values, gates: LayerGates, panel: "Axes") -> None:
    """Plot the three gates of one layer and direction, averaged over its units."""
    for name in ("forget", "input", "output"):
        panel.plot(times, getattr(gates, name).mean(1), marker=".", label=f"{name} gate")
    layer, _, reverse = gates.name.partition("_")
    panel.set(ylim=(0, 1), ylabel=f"layer {int(layer[1:]) + 1}\n{'backward' if reverse else 'forward'}\n(mean gate)")
    panel.grid(alpha=0.3)


def plot_attention(inspection: Inspection, panel: "Axes") -> None:
    """Plot the attention weight of each step, with the heads stacked."""
    trace = inspection.trace
    shares = trace.attention / len(trace.attention)
    for head, bottom in zip(shares, np.cumsum(shares, 0) - shares, strict=True):
        panel.bar(inspection.start_s + trace.step_s, head, 0.8 * float(np.diff(trace.step_s).mean()), bottom)
    panel.set_ylabel("attention\n(share)")


def plot_posteriors(inspection: Inspection, panel: "Axes") -> None:
    """Plot the `TOP` labels with the highest maximum of their posterior."""
    for label in inspection.posteriors.max(0).argsort()[::-1][:TOP]:
        panel.plot(
            inspection.start_s + inspection.heard_s,
            inspection.posteriors[:, label],
            marker=".",
            label=inspection.labels[label].strip("_"),  # matplotlib hides legend entries that begin with an underscore
        )
    of = "each step" if np.ndim(inspection.trace.scores) == 2 else "the audio\nso far"
    panel.set(ylim=(-0.03, 1.03), xlabel="time (s)", ylabel=f"posterior of\n{of}")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    panel.grid(alpha=0.3)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.study.inspect", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording in any format that libsndfile reads")
    parser.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, metavar="BUNDLE", help="(default: the shipped single words)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("inspection.png"), metavar="PICTURE.png", help="(default: inspection.png)"
    )
    parser.add_argument(
        "--at", type=float, metavar="S", help="a time within the utterance to draw (default: the most confident one)"
    )
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() != ".png":
        parser.error(f"--output must end in .png, got {arguments.output}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def look() -> None:
        rate = Recognizer.load(arguments.model).info.sample_rate_hz
        inspection = inspect(arguments.model, read(arguments.file, rate), arguments.at)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        plot(inspection).savefig(arguments.output, dpi=110)
        print(f"{arguments.file}: looked into {inspection.start_s:.2f} to {inspection.end_s:.2f} s")
        print("heard: " + ", ".join(f"{label} {score:.3f}" for label, score in inspection.best(3)))
        print(arguments.output)

    return exit_status(look)


if __name__ == "__main__":
    sys.exit(main())
