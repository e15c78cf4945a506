"""Commands at known times in long audio, heard through the Listener: misses, false alarms and the curve between."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.metrics import Share
from speech.activity import ListenerConfig
from speech.errors import DataError
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.training.augment import impulse_responses, reverberate
from speech.training.data import KEYWORDS, SAMPLE_RATE_HZ, Corpus, Waveform, extent, set_level
from speech.training.mixtures import SPEECH_DB, Placed

LATE_S = 0.75
"""A word counts as heard when it is decided between its start and this long after its end."""
TAIL = SAMPLE_RATE_HZ // 2
"""Samples for which a room sounds on after a clip; the shortest gap."""
BUDGET = 0.5
"""False alarms an hour in speech without commands that a curve is read at."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)
"""Of the curve: one for all words."""


@dataclass(frozen=True)
class Scene:
    """What commands are heard in."""

    snr_db: float | None
    """Level of the clip over what is mixed in; None: nothing is."""
    room: bool = False
    """Whether each command is heard in a room of the part."""
    bed: str = "noise"
    """What is mixed in: noise, or speech without commands."""

    @property
    def name(self) -> str:
        noise = "clean" if self.snr_db is None else f"{self.snr_db:.0f} dB"
        return noise + (" over speech" if self.bed == "speech" else "") + (", room" if self.room else "")


LEVELS = (None, 20.0, 10.0, 5.0, 0.0)
SCENES = (*map(Scene, LEVELS), *(Scene(level, room=True) for level in LEVELS), Scene(20.0, bed="speech"),
          Scene(10.0, bed="speech"))  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """What happened in one scene."""

    scene: Scene
    misses: Share
    false_alarms: int
    """Second firings and wrong words among the commands."""
    latencies_s: tuple[float, ...]
    judged: tuple[tuple[float, bool], ...] = ()
    """Of each detection the confidence and whether it was right."""

    @property
    def latencies_ms(self) -> tuple[int, int]:
        """Median and 95th percentile; 0 where nothing was heard."""
        median, late = np.quantile(self.latencies_s or (0.0,), [0.5, 0.95])
        return round(1000 * median), round(1000 * late)

    def __str__(self) -> str:
        median, late = self.latencies_ms
        return (
            f"  {self.scene.name:18}{'missed':8}{self.misses}   false {self.false_alarms:3}   "
            f"latency {median:4} ms, 95 % {late:4} ms"
        )

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "name": self.scene.name, "misses": self.misses.as_dict()}


@dataclass(frozen=True)
class Alarms:
    """Detections in audio that holds no command."""

    source: str
    hours: float
    found: list[tuple[str, Detection]]
    """Recording and what was detected in it; the times are the recording's own."""

    @property
    def rate(self) -> float:
        """An hour."""
        return len(self.found) / self.hours if self.hours else float("nan")

    def __str__(self) -> str:
        return (
            f"  {self.source + ':':26}{len(self.found):3} false alarms in {self.hours:.2f} h = {self.rate:.2f} an hour"
        )

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "rate": self.rate if self.hours else None}


@dataclass(frozen=True)
class Point:
    """The Listener with one threshold for all words."""

    threshold: float
    misses: dict[str, float]
    """Share of the commands missed, by the scene's name."""
    speech_rate: float
    """False alarms an hour in speech without commands."""
    noise_rate: float


@dataclass(frozen=True)
class Live:
    """The live protocol's figures."""

    part: str
    thresholds: dict[str, float]
    """The bundle's own."""
    after_talk_s: float
    """The Listener's: time after talk in which commands are rejected."""
    conditions: list[Condition]
    alarms: list[Alarms]
    curve: list[Point]

    @property
    def within_budget(self) -> Point | None:
        """The lowest threshold from which on the curve keeps to `BUDGET`."""
        kept: Point | None = None
        for point in reversed(self.curve):
            if not point.speech_rate <= BUDGET:
                break
            kept = point
        return kept

    def __str__(self) -> str:
        least, most = min(self.thresholds.values()), max(self.thresholds.values())
        threshold = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        lines = [
            f"live, {self.part}, threshold {threshold}, after talk {self.after_talk_s:g} s: ten commands, each alone",
            *map(str, [*self.conditions, *self.alarms]),
        ]
        if self.curve:
            names = [c.scene.name for c in self.conditions if not c.scene.room and c.scene.bed == "noise"]
            lines.append(f"  {'threshold':12}{'alarms/h':>9}" + "".join(f"{'missed ' + name:>15}" for name in names))
            for p in self.curve:
                shares = "".join(f"{100 * p.misses[name]:13.2f} %" for name in names)
                lines.append(f"  {p.threshold:<12g}{p.speech_rate:9.2f}{shares}")
            kept = self.within_budget
            lines.append(
                f"  at most {BUDGET:g} alarms an hour in speech: "
                + (f"from threshold {kept.threshold:g} on" if kept else "at none of these thresholds")
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        kept = self.within_budget
        return {
            "part": self.part,
            "thresholds": self.thresholds,
            "after_talk_s": self.after_talk_s,
            "conditions": [c.as_dict() for c in self.conditions],
            "alarms": [a.as_dict() for a in self.alarms],
            "curve": [asdict(p) for p in self.curve],
            "within_budget": asdict(kept) if kept else None,
        }


class Remembering(Recognizer):
    """A recogniser that keeps the scores of every window, so that the same audio can be heard at many thresholds."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.info, self._asked = recognizer.info, recognizer
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def scores(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        key = hashlib.blake2b(waveforms.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = self._asked.scores(waveforms)
        return self._known[key]


def place_words(
    corpus: Corpus, part: str, n_words: int, rng: np.random.Generator, rooms: torch.Tensor | None = None
) -> tuple[Waveform, list[Placed]]:
    """Equally many clips of each command one after another, 0.5 to 2 s of nothing between them.

    With `rooms` (rooms, taps) each is heard in one of them; the same clips at the same places as without.
    """
    pieces, placed, at = [], [], 0
    choice = np.random.default_rng(2)
    for word in rng.permutation(np.repeat(KEYWORDS, n_words // len(KEYWORDS))):
        clip = corpus[int(rng.choice(corpus.select(part, "words", str(word))))]
        start, end = extent(clip)
        gap = int(rng.uniform(0.5, 2.0) * SAMPLE_RATE_HZ)
        clip = set_level(clip, SPEECH_DB)
        placed.append(Placed(str(word), (at + gap + start) / SAMPLE_RATE_HZ, (at + gap + end) / SAMPLE_RATE_HZ))
        pieces.append((at + gap, clip if rooms is None else hear_in(clip, rooms, choice)))
        at += gap + len(clip)
    stream = np.zeros(at + TAIL, np.float32)
    for begin, piece in pieces:
        stream[begin : begin + len(piece)] += piece
    return stream, placed


def hear_in(clip: Waveform, rooms: torch.Tensor, rng: np.random.Generator) -> Waveform:
    """The clip in a random room, which sounds on for `TAIL` samples."""
    dry = torch.from_numpy(np.pad(clip, (0, TAIL)))
    wet: Waveform = reverberate(dry[None], rooms[rng.integers(len(rooms))][None])[0].numpy()
    return wet


def bed(corpus: Corpus, part: str, source: str, n_samples: int, rng: np.random.Generator) -> Waveform:
    """Pieces of five seconds of the part's recordings of noise or speech; silence where it has none."""
    sources = corpus.select(part, source)
    if not len(sources):
        return np.zeros(n_samples, np.float32)
    pieces = [
        corpus.crop(int(rng.choice(sources)), rng, 5 * SAMPLE_RATE_HZ)
        for _ in range(n_samples // (5 * SAMPLE_RATE_HZ) + 1)
    ]
    return np.concatenate([set_level(piece, SPEECH_DB) for piece in pieces])[:n_samples]


def score(placed: Sequence[Placed], detections: Sequence[Detection], scene: Scene) -> Condition:
    """Match detections to commands; each command takes the first right one in its time."""
    left, latencies = list(detections), []
    for command in placed:
        for detection in left:
            if detection.word == command.word and command.start_s <= detection.at_s <= command.end_s + LATE_S:
                left.remove(detection)
                latencies.append(detection.at_s - command.end_s)
                break
    misses = Share(len(placed) - len(latencies), len(placed))
    judged = tuple((round(d.confidence, 4), d not in left) for d in detections)
    return Condition(scene, misses, len(left), tuple(round(x, 3) for x in latencies), judged)


def blocks(waveform: Waveform) -> list[Waveform]:
    return np.array_split(waveform, max(1, len(waveform) // 1600))


def evaluate_live(
    recognizer: Recognizer,
    corpus: Corpus,
    part: str,
    n_words: int = 300,
    thresholds: Sequence[float] = THRESHOLDS,
    config: ListenerConfig = ListenerConfig(),  # noqa: B008 - frozen
) -> Live:
    """Misses and latency in every scene, false alarms in what holds no command, both again at other thresholds.

    The same for a seed: commands, gaps, rooms, noise and speech are drawn once and used at every level.
    """
    if not all(len(corpus.select(part, "words", word)) for word in KEYWORDS):
        raise DataError(f"the live protocol needs recordings of all ten commands in the {part} part")
    scenes, placed = set_scenes(corpus, part, n_words)
    recordings = {
        "speech without commands": [int(i) for i in corpus.select(part, "speech")],
        "noise alone": [int(i) for i in corpus.select(part, "noise")],
    }
    remembering = Remembering(recognizer)

    def conditions(listener: Listener) -> list[Condition]:
        return [score(placed, list(listener.listen(blocks(x))), scene) for scene, x in scenes.items()]

    def alarms(listener: Listener) -> list[Alarms]:
        return [find_alarms(listener, corpus, source, chosen) for source, chosen in recordings.items()]

    curve = []
    for threshold in thresholds:
        listener = Listener(remembering, KEYWORDS, threshold, config)
        misses = {c.scene.name: c.misses.value for c in conditions(listener)}
        in_speech, in_noise = alarms(listener)
        curve.append(Point(threshold, misses, in_speech.rate, in_noise.rate))
    listener = Listener(remembering, KEYWORDS, config=config)
    speech = recordings["speech without commands"]
    found = [*alarms(listener), find_alarms_apart(listener, corpus, "speech, each by itself", speech)]
    return Live(part, listener.thresholds, config.after_talk_s, conditions(listener), found, curve)


def find_alarms(listener: Listener, corpus: Corpus, source: str, chosen: Sequence[int]) -> Alarms:
    """What is detected in recordings without commands, played one after another as one stream."""
    ends_s = np.cumsum([len(corpus[i]) for i in chosen]) / SAMPLE_RATE_HZ
    found = []
    for d in listener.listen(block for i in chosen for block in blocks(corpus[i])):
        which = min(int(np.searchsorted(ends_s, d.start_s, "right")), len(chosen) - 1)
        begin_s = float(ends_s[which - 1]) if which else 0.0
        own = replace(d, start_s=d.start_s - begin_s, end_s=d.end_s - begin_s, at_s=d.at_s - begin_s)
        found.append((name_of(corpus, chosen[which]), own))
    return Alarms(source, float(ends_s[-1]) / 3600 if len(chosen) else 0.0, found)


def find_alarms_apart(listener: Listener, corpus: Corpus, source: str, chosen: Sequence[int]) -> Alarms:
    """The same, each recording by itself after silence, so that nobody has talked before it."""
    each = [find_alarms(listener, corpus, source, [i]) for i in chosen]
    return Alarms(source, sum(a.hours for a in each), [f for a in each for f in a.found])


def set_scenes(corpus: Corpus, part: str, n_words: int) -> tuple[dict[Scene, Waveform], list[Placed]]:
    """The stream of each scene that the data allow, and where the commands stand in all of them."""
    impulses = [torch.from_numpy(corpus[i]) for i in corpus.select(part, "rooms")]
    dry, placed = place_words(corpus, part, n_words, np.random.default_rng(0))
    streams = {False: dry}
    if impulses:
        streams[True], _ = place_words(corpus, part, n_words, np.random.default_rng(0), impulse_responses(impulses))
    beds = {source: bed(corpus, part, source, len(dry), np.random.default_rng(1)) for source in ("noise", "speech")}
    scenes = {}
    for scene in SCENES:
        if scene.room not in streams or (scene.snr_db is not None and not beds[scene.bed].any()):
            continue
        added = 0 if scene.snr_db is None else beds[scene.bed] * np.float32(10 ** (-scene.snr_db / 20))
        scenes[scene] = np.clip(streams[scene.room] + added, -1, 1)
    return scenes, placed


def name_of(corpus: Corpus, index: int) -> str:
    path = corpus.recordings[index].path
    return f"{path.parent.name}/{path.name}"


def draw_live(result: Live, target: Path) -> None:
    """Misses over false alarms an hour in all that holds no command, a curve for each scene, as one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    panes = figure.subplots(1, 2, sharey=True)
    hours = np.array([alarms.hours for alarms in result.alarms[:2]])  # of speech and of noise
    counts = [np.nan_to_num([point.speech_rate, point.noise_rate]) @ hours for point in result.curve]
    rates = [max(count / max(hours.sum(), 1e-9), 0.1) for count in counts]  # the axis is logarithmic
    for condition in result.conditions:
        scene = condition.scene
        misses = [100 * point.misses[scene.name] for point in result.curve]
        panes[int(scene.room or scene.bed == "speech")].plot(rates, misses, marker=".", label=scene.name)
    for axes, title in zip(panes, ("Noise", "Rooms, and other speech"), strict=True):
        axes.axvline(BUDGET, color="grey", linestyle=":")
        axes.set(xscale="log", xlabel="false alarms an hour in speech and noise (0 drawn at 0.1)", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    panes[0].set(ylabel="commands missed (%)", ylim=(0, None))
    figure.suptitle(f"Live, {result.part}: thresholds {result.curve[0].threshold:g} to {result.curve[-1].threshold:g}")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
