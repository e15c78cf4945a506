"""Sequences of commands: command error rate with the whole recording at once, and through the Listener."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchaudio.functional import edit_distance

from recipes.data.clips import SAMPLE_RATE_HZ, Waveform
from recipes.data.corpus import Corpus, index_others, index_words, read_commands
from recipes.data.mixtures import Mixture, fixed_mixtures
from recipes.metrics import Estimate, Share, estimate
from recipes.protocols.scenes import bed, blocks
from recipes.vocabulary import add_words_option
from speech.errors import DataError
from speech.grammar import Grammar
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection, Rejection, SpokenWord

CONDITIONS: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0)
GAPS_S = ((0.1, 0.35), (0.35, 0.55), (0.55, 1.0))


@dataclass(frozen=True)
class Heard:
    """The transcript of one mixture and the recognised words."""

    said: tuple[str, ...]
    heard: tuple[str, ...]
    gap_s: float
    """Mean pause between the words of the mixture."""

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return int(edit_distance(self.said, self.heard))


def error_rate(heard: Sequence[Heard]) -> Share:
    """Command error rate: errors over commands."""
    return Share(sum(h.errors for h in heard), sum(len(h.said) for h in heard))


def counts(heard: Sequence[Heard]) -> NDArray[np.int64]:
    """(2, mixtures): the errors and the commands of each mixture."""
    return np.array([(h.errors, len(h.said)) for h in heard]).T


def error_estimate(heard: Sequence[Heard]) -> Estimate:
    """Command error rate with its bootstrap interval over mixtures."""
    errors, said = counts(heard)
    return estimate(errors.sum() / said.sum(), lambda e, n: e / n, errors, said)


@dataclass(frozen=True)
class Sequences:
    """The figures at one signal-to-noise ratio."""

    snr_db: float | None
    """None: no noise added."""
    whole: list[Heard]
    live: list[Heard]
    latencies_s: list[float]
    rejected: dict[str, int] = field(default_factory=dict)
    """Number of rejected utterances by reason."""

    @property
    def name(self) -> str:
        return "clean" if self.snr_db is None else f"{self.snr_db:.0f} dB"

    def __str__(self) -> str:
        median, late = np.quantile(self.latencies_s, [0.5, 0.95]) if self.latencies_s else (np.nan, np.nan)
        return (
            f"  {self.name:7}whole {error_rate(self.whole)}   live {error_rate(self.live)}   "
            f"latency {1000 * median:4.0f} ms, 95 % {1000 * late:4.0f} ms   "
            + ", ".join(f"{reason} {n}" for reason, n in self.rejected.items())
        )


@dataclass(frozen=True)
class Connected:
    """The figures of the protocol."""

    part: str
    conditions: list[Sequences]

    def __str__(self) -> str:
        lines = [f"connected commands, {self.part}, {len(self.conditions[0].whole)} mixtures: command error rate"]
        lines += map(str, self.conditions)
        lines += [f"  clean, {n} words          {error_rate(some)}" for n, some in self.by_size.items()]
        lines += [f"  clean, gaps {name:12} {error_rate(some)}" for name, some in self.by_gap.items()]
        return "\n".join(lines)

    @property
    def by_size(self) -> dict[int, list[Heard]]:
        """Clean mixtures by their number of words."""
        clean = self.conditions[0].whole
        return {n: [h for h in clean if len(h.said) == n] for n in sorted({len(h.said) for h in clean})}

    @property
    def by_gap(self) -> dict[str, list[Heard]]:
        """Clean mixtures of several words by the mean gap between them."""
        several = [h for h in self.conditions[0].whole if len(h.said) > 1]
        return {f"{low:g}-{high:g} s": [h for h in several if low <= h.gap_s < high] for low, high in GAPS_S}

    def as_dict(self) -> dict[str, object]:
        return {
            "part": self.part,
            "conditions": [
                {
                    **asdict(c),
                    "whole_error_rate": error_rate(c.whole).as_dict(),
                    "live_error_rate": error_rate(c.live).as_dict(),
                }
                for c in self.conditions
            ],
        }


def draw_connected(result: Connected, target: Path) -> None:
    """Draw the error rate with its 95 % interval against noise, number of words and gap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    noise, size, gap = figure.subplots(1, 3, sharey=True)
    names = [c.name for c in result.conditions]
    for label, groups in (("whole recording", [c.whole for c in result.conditions]),
                          ("live", [c.live for c in result.conditions])):  # fmt: skip
        _draw_rates(noise, names, groups, label)
    noise.legend()
    _draw_rates(size, [str(n) for n in result.by_size], list(result.by_size.values()))
    _draw_rates(gap, list(result.by_gap), list(result.by_gap.values()))
    noise.set(title="Noise", xlabel="signal-to-noise ratio", ylabel="command error rate (%)", ylim=(0, None))
    size.set(title="Clean, whole recording", xlabel="words in the mixture")
    gap.set(title="Clean, whole recording", xlabel="mean gap between words")
    figure.suptitle(f"Connected commands, {result.part}, {len(result.conditions[0].whole)} mixtures")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _draw_rates(axes: Any, names: Sequence[str], groups: Sequence[Sequence[Heard]], label: str | None = None) -> None:
    rates = [error_rate(group) for group in groups]
    values = np.array([100 * r.value for r in rates])
    low, high = (np.array([100 * r.interval[side] for r in rates]) for side in (0, 1))
    place = np.arange(len(names)) + (0.08 if label == "live" else 0)
    spread = [np.maximum(0, values - low), np.maximum(0, high - values)]
    axes.errorbar(place, values, spread, marker="o", capsize=3, linestyle="none", label=label)
    axes.set_xticks(range(len(names)), names)
    axes.grid(alpha=0.3)


def noisy(mixtures: Sequence[Mixture], corpus: Corpus, part: str, snr_db: float | None) -> list[Waveform]:
    """The mixtures' audio with noise at `snr_db` below the words; the noise is the same at every ratio."""
    if snr_db is None:
        return [m.waveform for m in mixtures]
    noise = bed(corpus, part, "noise", sum(len(m.waveform) for m in mixtures), np.random.default_rng(1))
    noise *= np.float32(10 ** (-snr_db / 20))
    ends = np.cumsum([len(m.waveform) for m in mixtures])
    pieces = np.split(noise, ends[:-1])
    return [np.clip(m.waveform + piece, -1, 1) for m, piece in zip(mixtures, pieces, strict=True)]


def mean_gap_s(mixture: Mixture) -> float:
    gaps = [b.start_s - a.end_s for a, b in zip(mixture.placed, mixture.placed[1:], strict=False)]
    return float(np.mean(gaps)) if gaps else 0.0


def latencies(mixture: Mixture, detections: Sequence[Detection]) -> list[float]:
    """Seconds from the end of the last command said to the decision, for each reported utterance."""
    found = []
    for at_s in sorted({detection.at_s for detection in detections}):
        ended_s = [placed.end_s for placed in mixture.placed if placed.end_s <= at_s]
        found += [round(at_s - max(ended_s), 3)] if ended_s else []
    return found


def hear(
    mixtures: Sequence[Mixture], audio: Sequence[Waveform], by: Callable[[Waveform], Sequence[str]]
) -> list[Heard]:
    """Transcribe each mixture's audio with `by`."""
    return [heard_in(m, by(x)) for m, x in zip(mixtures, audio, strict=True)]


def heard_in(mixture: Mixture, words: Sequence[str]) -> Heard:
    return Heard(mixture.transcript, tuple(words), mean_gap_s(mixture))


def words_of(found: Sequence[SpokenWord | Detection]) -> list[str]:
    return [f.word for f in found]


def evaluate_connected(recognizer: Recognizer, corpus: Corpus, part: str, n: int, commands: Sequence[str]) -> Connected:
    """Measure error rates on `n` fixed mixtures of one to six commands; only commands are recognised."""
    mixtures = fixed_mixtures(corpus, part, n, commands, seed=0)
    rejections: list[Rejection] = []
    listener, these = Listener(recognizer, commands, rejected=rejections.append), Grammar.any_of(commands)
    conditions = []
    for snr_db in CONDITIONS if len(corpus.select(part, "noise")) else CONDITIONS[:1]:
        audio = noisy(mixtures, corpus, part, snr_db)
        whole = hear(mixtures, audio, lambda x: words_of(recognizer.transcribe(x, SAMPLE_RATE_HZ, grammar=these)))
        rejections.clear()
        detections = [list(listener.listen(blocks(x))) for x in audio]
        heard = iter(detections)
        live = hear(mixtures, audio, lambda _: words_of(next(heard)))  # noqa: B023 - used at once
        found = [x for m, some in zip(mixtures, detections, strict=True) for x in latencies(m, some)]
        reasons = Counter(rejection.reason.value for rejection in rejections)
        conditions.append(Sequences(snr_db, whole, live, found, dict(reasons.most_common())))
    return Connected(part, conditions)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that programs for sequences share; `load` reads them."""
    parser.add_argument("--model", default="connected", help="bundle with a CTC head (default: connected)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.add_argument("--data.cache", dest="cache", type=Path, metavar="DIR", help="default: DIR/cache")
    parser.add_argument("--part", choices=("validation", "testing"), default="validation")
    parser.add_argument("--held-out", type=float, default=0.12, help="as data.held_out in training (default: 0.12)")
    add_words_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")


def load(
    arguments: argparse.Namespace, kind: type[Recognizer] = Recognizer
) -> tuple[Recognizer, Corpus, tuple[str, ...]]:
    """Load the bundle as `kind`, the recordings of the part, and the commands.

    Raises:
        SpeechError: the bundle or the data is missing, or the bundle recognises single words only.
    """
    recognizer, commands = kind.load(arguments.model), read_commands(arguments.words)
    if not recognizer.head.has_steps:
        raise DataError(f"{arguments.model} recognises single words only; use a bundle such as --model connected")
    recordings = index_words(arguments.root, arguments.held_out) + index_others(arguments.root)
    needed = [recording for recording in recordings if recording.part == arguments.part]
    return recognizer, Corpus(needed, arguments.cache or arguments.root / "cache"), commands
