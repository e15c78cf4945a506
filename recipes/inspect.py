"""Draw what a network does with a recording: `python -m recipes.inspect --model CHECKPOINT_OR_BUNDLE FILE`.

One picture: waveform, MFCC, the gates of every LSTM layer and direction, attention, posteriors over time.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from speech.audio import read
from speech.errors import ConfigError, SpeechError
from speech.training.data import SILENCE, UNKNOWN, Waveform, fit
from speech.training.export import Scorer, load_network
from speech.training.lstm import LSTM
from speech.training.networks import Classifier, Encoder, NetworkConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW_S = 1.0
"""What the network was trained on."""
HOP_S = 0.05
"""Distance between two windows of the posteriors over time."""
VIEW_S = 2.0
"""Width of the picture; a longer recording is seen around the window, and whole in the last panel."""
TOP, TOP_WHOLE = 4, 12
"""Labels drawn over time, in the view and of a whole long recording."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class GateActivity:
    """Mean over the units of each gate of one layer and direction: each (steps,), 0..1, in the order of time."""

    name: str
    """l0, l0_reverse, l1, ..."""
    forget: Values
    input: Values
    output: Values


@dataclass(frozen=True)
class Inspection:
    """What a network makes of a recording, and what goes on inside it during one window of it."""

    labels: tuple[str, ...]
    sample_rate_hz: int
    waveform: Waveform
    """(time,); a recording shorter than the window stands in the middle of silence."""
    features: Values
    """(frames, n_mfcc) of the whole recording."""
    frame_s: Values
    """(frames,) middle of each frame."""
    window_s: Values
    """(windows,) middle of each window of `posteriors`."""
    posteriors: Values
    """(windows, labels); at the edges half a window is silence."""
    start_s: float
    """Where the window begins that the rest is about."""
    scores: Values
    """(labels,) its posteriors."""
    step_s: Values
    """(steps,) middle of what each LSTM step sees, in seconds of the recording."""
    attention: Values
    """(steps,), sums to one."""
    gates: tuple[GateActivity, ...]

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / self.sample_rate_hz

    def best(self, n: int) -> list[tuple[str, float]]:
        """The `n` likeliest labels of the window with their posteriors."""
        return [(self.labels[i], float(self.scores[i])) for i in self.scores.argsort()[::-1][:n]]


def load(path: Path) -> tuple[Scorer, tuple[str, ...]]:
    """The network of a checkpoint or bundle with its LSTM written from the equations, and its labels.

    Raises:
        BundleError: when the file is neither.
        ConfigError: when its network is a plain RNN, or has a CTC head.
    """
    scorer, notes = load_network(path)
    if notes.get("lstm") == "rnn":
        raise ConfigError(f"{path} holds a plain RNN, which has no gates: give a checkpoint of an LSTM")
    if notes.get("head", "classification") != "classification":
        raise ConfigError(f"{path} hears sequences: give a network of single words")
    n_mfcc, labels = scorer.mfcc.config.n_mfcc, tuple(notes["labels"])
    twin = Classifier(n_mfcc, len(labels), NetworkConfig(**notes["network"]), lstm="equations")
    twin.load_state_dict(scorer.network.state_dict())
    scorer.network = twin.eval()
    return scorer, labels


def inspect(scorer: Scorer, labels: Sequence[str], waveform: Waveform, start_s: float | None = None) -> Inspection:
    """Look into one window of a recording.

    Args:
        scorer: from `load`.
        labels: the same.
        waveform: (time,), float32 in -1..1 at the network's rate.
        start_s: where the window begins; default: where the posterior of a word is highest.
    Raises:
        ConfigError: when the window would not lie inside the recording.
    """
    config = scorer.mfcc.config
    rate, window = config.sample_rate_hz, round(WINDOW_S * config.sample_rate_hz)
    waveform = waveform if len(waveform) >= window else fit(waveform, window)
    last = len(waveform) - window
    if start_s is not None and not 0 <= start_s <= last / rate:
        raise ConfigError(f"a window of {WINDOW_S:g} s must begin within 0..{last / rate:.2f} s, not at {start_s:g} s")
    middles, posteriors = slide(scorer, waveform)
    start = strongest(labels, posteriors, middles - window // 2, last) if start_s is None else round(start_s * rate)
    with torch.no_grad():
        features = scorer.mfcc(torch.from_numpy(waveform)[None])[0].numpy()
        scores, attention, gates = trace(scorer, waveform[start : start + window])
    return Inspection(
        labels=tuple(labels),
        sample_rate_hz=rate,
        waveform=waveform,
        features=features,
        frame_s=((np.arange(len(features)) * config.hop + config.window / 2) / rate).astype(np.float32),
        window_s=(middles / rate).astype(np.float32),
        posteriors=posteriors,
        start_s=start / rate,
        scores=scores,
        step_s=start / rate + step_times(scorer, len(attention)),
        attention=attention,
        gates=gates,
    )  # fmt: skip


def slide(scorer: Scorer, waveform: Waveform, batch: int = 64) -> tuple[NDArray[np.int64], Values]:
    """Posteriors (windows, labels) of a window every `HOP_S`, and the sample in the middle of each (windows,).

    The middle runs from one end of the recording to the other, with silence beyond the ends; one window begins at 0.
    """
    rate = scorer.mfcc.config.sample_rate_hz
    window, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    before = window // 2 // hop * hop
    padded = np.pad(waveform, (before, window - window // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    with torch.no_grad():
        scores = [
            scorer(torch.from_numpy(windows[i : i + batch].copy())).numpy() for i in range(0, len(windows), batch)
        ]
    return np.arange(len(windows)) * hop - before + window // 2, np.concatenate(scores)


def strongest(labels: Sequence[str], posteriors: Values, starts: NDArray[np.int64], last: int) -> int:
    """First sample of the window inside the recording in which a word stands out most."""
    is_word = [label not in (UNKNOWN, SILENCE) for label in labels]
    inside = (starts >= 0) & (starts <= last)
    return int(starts[inside][posteriors[inside][:, is_word].max(1).argmax()])


def trace(scorer: Scorer, waveform: Waveform) -> tuple[Values, Values, tuple[GateActivity, ...]]:
    """Posteriors (labels,), attention (steps,) and gates of one window (time,)."""
    network, encoder, lstm = scorer.network, scorer.network.encoder, scorer.network.encoder.lstm
    if not isinstance(network, Classifier) or not isinstance(lstm, LSTM):
        raise TypeError("the LSTM must be the one written from its equations: load the checkpoint with `load`")
    window = torch.from_numpy(waveform)[None]
    features = scorer.mfcc(window)
    _, attention = network.pool(encoder(features))  # (1, heads, steps)
    names = [f"l{layer}{direction}" for layer in range(lstm.num_layers) for direction in lstm.directions]
    gates = tuple(
        GateActivity(name, *(gate[0].mean(1).numpy() for gate in (g.forget, g.input, g.output)))
        for name, g in zip(names, lstm.gates(encoder.steps(features)), strict=True)
    )
    return scorer(window)[0].numpy(), attention[0].mean(0).numpy(), gates


def step_times(scorer: Scorer, n_steps: int) -> Values:
    """Middle of what each LSTM step sees, in seconds from the beginning of the window: (n_steps,)."""
    config = scorer.mfcc.config
    distance_s, first_s = Encoder.timing(scorer.network.config, config.hop_ms / 1000, config.window_ms / 1000)
    return (first_s + distance_s * np.arange(n_steps)).astype(np.float32)


def draw(inspection: Inspection) -> "Figure":
    """All of it as one picture over the same seconds; a long recording once more, whole, in the last panel."""
    from matplotlib.figure import Figure

    start, duration = inspection.start_s, inspection.duration_s
    left = min(max(0.0, start + WINDOW_S / 2 - VIEW_S / 2), max(0.0, duration - VIEW_S))
    view = (left, min(left + VIEW_S, duration))
    heights = [1, 1.6, *[0.9] * len(inspection.gates), 0.9, 1.4, *[1.4] * (duration > VIEW_S)]
    figure = Figure(figsize=(10, 1.35 * sum(heights)), layout="constrained")
    panels = list(figure.subplots(len(heights), height_ratios=heights))
    if duration > VIEW_S:
        overview = panels.pop()
        draw_posteriors(inspection, overview, (0, duration), TOP_WHOLE)
        overview.set_title("the whole recording", loc="left", fontsize="medium")
        overview.axvspan(start, start + WINDOW_S, color="gold", alpha=0.15, zorder=0)
    draw_sound(inspection, panels[0], panels[1])
    for gates, panel in zip(inspection.gates, panels[2:-2], strict=True):
        draw_gates(inspection, gates, panel)
    panels[2].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    draw_attention(inspection, panels[-2])
    draw_posteriors(inspection, panels[-1], view, TOP)
    for panel in panels:
        panel.set_xlim(view)
        panel.tick_params(labelbottom=panel is panels[-1])
        panel.axvspan(start, start + WINDOW_S, color="gold", alpha=0.15, zorder=0)
    words = ", ".join(f"{label.strip('_')} {score:.2f}" for label, score in inspection.best(3))
    figure.suptitle(f"window {start:.2f} to {start + WINDOW_S:.2f} s (yellow): {words}")
    return figure


def draw_sound(inspection: Inspection, sound: "Axes", mfcc: "Axes") -> None:
    """Waveform and MFCC; each coefficient is scaled by its own mean and deviation, or the first would hide all."""
    sound.plot(np.arange(len(inspection.waveform)) / inspection.sample_rate_hz, inspection.waveform, linewidth=0.5)
    sound.set_ylabel("waveform\n(full scale 1)")
    features = inspection.features
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    numbers = np.arange(features.shape[1])
    mfcc.pcolormesh(inspection.frame_s, numbers, scaled.T, vmin=-2.5, vmax=2.5, cmap="RdBu_r", rasterized=True)
    mfcc.set_ylabel("MFCC\n(coefficient)")


def draw_gates(inspection: Inspection, gates: GateActivity, panel: "Axes") -> None:
    """The three gates of one layer and direction."""
    for name in ("forget", "input", "output"):
        panel.plot(inspection.step_s, getattr(gates, name), marker=".", label=f"{name} gate")
    layer, _, reverse = gates.name.partition("_")
    panel.set(ylim=(0, 1), ylabel=f"layer {int(layer[1:]) + 1}\n{'backward' if reverse else 'forward'}\n(mean gate)")
    panel.grid(alpha=0.3)


def draw_attention(inspection: Inspection, panel: "Axes") -> None:
    """Share of each step in what the classifier sees."""
    width = 0.8 * float(np.diff(inspection.step_s).mean()) if len(inspection.step_s) > 1 else WINDOW_S
    panel.bar(inspection.step_s, inspection.attention, width=width, color="tab:purple")
    panel.set_ylabel("attention\n(share)")


def draw_posteriors(inspection: Inspection, panel: "Axes", view: tuple[float, float], n: int) -> None:
    """The `n` labels that reach the highest posteriors between two times."""
    seen = (inspection.window_s >= view[0]) & (inspection.window_s <= view[1])
    for label in inspection.posteriors[seen].max(0).argsort()[::-1][:n]:
        panel.plot(
            inspection.window_s[seen],
            inspection.posteriors[seen, label],
            label=inspection.labels[label].strip("_"),  # matplotlib leaves names with an underscore out of the legend
            color=f"C{label % 10}",
            linestyle=("-", "--", ":")[label // 10 % 3],
        )
    panel.set(ylim=(-0.03, 1.03), xlim=view, xlabel="time (s)", ylabel="posterior of\nthe second\naround it")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    panel.grid(alpha=0.3)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.inspect", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording, whatever libsndfile reads")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="RUN/checkpoints/best.ckpt, or a bundle"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("inspection.png"), metavar="PICTURE.png", help="(default: inspection.png)"
    )
    parser.add_argument(
        "--start", type=float, metavar="S", help="where the second begins that is looked into (default: the clearest)"
    )
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() != ".png":
        parser.error(f"--output must end in .png, got {arguments.output}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        scorer, labels = load(arguments.model)
        inspection = inspect(scorer, labels, read(arguments.file, scorer.mfcc.config.sample_rate_hz), arguments.start)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        draw(inspection).savefig(arguments.output, dpi=110)
    except (SpeechError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.file}: {inspection.duration_s:.2f} s, looked into the second from {inspection.start_s:.2f} s")
    print("heard: " + ", ".join(f"{label} {score:.3f}" for label, score in inspection.best(3)))
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
