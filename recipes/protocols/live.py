"""The live protocol: commands in many scenes, and audio without commands, through the parts of the Listener.

Each stream is cut into utterances and each utterance is read once.  Thresholds and the time after talk only change the
decision, so many thresholds cost little more than one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from recipes.data.clips import SAMPLE_RATE_HZ, Waveform
from recipes.data.corpus import Corpus
from recipes.data.mixtures import Placed
from recipes.metrics import Rate, Share
from recipes.protocols.scenes import SCENES, Scene, Stage
from speech.decide import Decision
from speech.errors import ConfigError
from speech.heads import Reading
from speech.listener import thresholds_for
from speech.recognizer import Recognizer
from speech.results import Detection, Examined, Reason
from speech.segment import HOP, ListenerConfig, Segmenter, Utterance

LATE_S = 0.75
"""A word counts as recognised if it is reported between its start and this time after its end."""
BUDGET = 1.0
"""False alarms per hour in speech without commands at which the curve is evaluated."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)
"""Thresholds of the curve, each for all words."""
LEAST = 1e-6
"""Threshold at which utterances are read; the decision applies the real one later."""
ALARMS = {"speech": "speech", "noise": "noise", "events": "events", "other words at home": "home"}
"""Kinds of audio without commands, and the source of their recordings."""
TABLE = ("clean", "10 dB", "5 dB", "10 dB, room", "0.6 s after talk", "1 s after talk", "2 s after talk")
"""Scenes in the printed curve."""
UNHEARD, WRONG, LATE = "no utterance", "wrong word", "too late"
"""Why a command was missed, in addition to the reasons of `speech.results.Reason`."""


@dataclass(frozen=True)
class Heard:
    """A stream that was cut into utterances, with one reading of each."""

    utterances: tuple[Utterance, ...]
    """Without their audio."""
    readings: Mapping[int, Reading]
    """The reading of each utterance, by `Utterance.begin`; utterances that are too long have none."""
    n_samples: int
    """Length of the stream."""
    max_s: float
    """Length above which an utterance is too long to be read."""


class ReadBefore:
    """A reader that returns stored readings, with a word below its threshold rejected as unsure.

    Args:
        heard: the stored readings.
        thresholds: of the words to report, 0..1.
    """

    def __init__(self, heard: Heard, thresholds: Mapping[str, float]) -> None:
        self._readings, self._thresholds, self.max_s = heard.readings, thresholds, heard.max_s

    def reset(self) -> None:
        """A new stream begins."""

    def read(self, utterance: Utterance) -> Reading:
        reading = self._readings[utterance.begin]
        if reading.reason is None and any(word.confidence < self._thresholds[word.word] for word in reading.words):
            return replace(reading, reason=Reason.UNSURE)
        return reading


def hear(recognizer: Recognizer, pieces: Iterable[Waveform], config: ListenerConfig, commands: Sequence[str]) -> Heard:
    """Cut a stream into utterances and read each.

    Args:
        pieces: consecutive pieces of the stream, (time,) each.
    """
    reader = recognizer.head.reader(recognizer, dict.fromkeys(commands, LEAST), config, None)
    segmenter = Segmenter(config, reader.max_s)
    nothing, n_samples = np.zeros(0, np.float32), 0
    utterances: list[Utterance] = []
    readings: dict[int, Reading] = {}

    def take(utterance: Utterance | None) -> None:
        if utterance is not None:
            utterances.append(replace(utterance, waveform=nothing))
            if not utterance.is_long:
                readings[utterance.begin] = reader.read(utterance)

    for piece in whole_hops(pieces):
        n_samples += len(piece)
        for hop in np.pad(piece, (0, -len(piece) % HOP)).reshape(-1, HOP):
            take(segmenter.push(hop))
    take(segmenter.finish())
    return Heard(tuple(utterances), readings, n_samples, reader.max_s)


def whole_hops(pieces: Iterable[Waveform]) -> Iterator[Waveform]:
    """Regroup a stream into pieces of whole hops; only the last piece may end within a hop."""
    rest = np.zeros(0, np.float32)
    for piece in pieces:
        samples = np.concatenate([rest, piece])
        n_whole = len(samples) // HOP * HOP
        yield samples[:n_whole]
        rest = samples[n_whole:]
    yield rest


def decide(heard: Heard, thresholds: Mapping[str, float], config: ListenerConfig) -> list[Examined]:
    """The decisions of a Listener with these settings for a stream."""
    decision = Decision(ReadBefore(heard, thresholds), config)
    return [decision.decide(utterance, heard.n_samples) for utterance in heard.utterances]


def detections_in(examined: Iterable[Examined]) -> list[Detection]:
    return [detection for one in examined for detection in one.detections]


@dataclass(frozen=True)
class Condition:
    """The figures of one scene."""

    scene: Scene
    misses: Share
    false_alarms: int
    """Detections that match no command: repeated detections and wrong words."""
    latencies_s: tuple[float, ...]
    judged: tuple[tuple[float, bool], ...] = ()
    """For each detection: its confidence and whether it is right."""
    causes: Mapping[str, int] | None = None
    """Number of missed commands by reason."""

    @property
    def latencies_ms(self) -> tuple[int, int]:
        """Median and 95th percentile; 0 if no command was recognised."""
        median, late = np.quantile(self.latencies_s or (0.0,), [0.5, 0.95])
        return round(1000 * median), round(1000 * late)

    @property
    def why(self) -> str:
        return ", ".join(f"{cause} {n}" for cause, n in Counter(self.causes or {}).most_common())

    def __str__(self) -> str:
        median, late = self.latencies_ms
        return (
            f"  {self.scene.name:18}{'missed':8}{self.misses!s:32}false {self.false_alarms:3}   "
            f"latency {median:4} ms, 95 % {late:4} ms   {self.why}"
        )

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "name": self.scene.name, "misses": self.misses.as_dict()}


@dataclass(frozen=True)
class Alarms:
    """Detections in audio without commands."""

    source: str
    hours: float
    found: list[tuple[str, Detection]]
    """Each recording's name and a detection in it; times are relative to the recording."""

    @property
    def rate(self) -> Rate:
        return Rate(len(self.found), self.hours)

    def __str__(self) -> str:
        words = ", ".join(f"{word} {n}" for word, n in Counter(d.word for _, d in self.found).most_common())
        return f"  {self.source:20}{'alarms':8}{self.rate}   {words}"

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "rate": self.rate.as_dict()}


@dataclass(frozen=True)
class Point:
    """The figures at one threshold for all words."""

    threshold: float
    misses: dict[str, Share]
    """Share of missed commands by the scene's name."""
    alarms: dict[str, Rate]
    """False alarms by kind of audio without commands."""

    @property
    def speech(self) -> Rate:
        return self.alarms.get("speech", Rate(0, 0.0))

    @property
    def sounds(self) -> Rate:
        """False alarms in noise and events together."""
        return self.alarms.get("noise", Rate(0, 0.0)) + self.alarms.get("events", Rate(0, 0.0))

    def as_dict(self) -> dict[str, object]:
        return {
            "threshold": self.threshold,
            "misses": {name: share.as_dict() for name, share in self.misses.items()},
            "alarms": {name: rate.as_dict() for name, rate in self.alarms.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """The figures for one setting of `after_talk_s`."""

    after_talk_s: float
    """Time after talk in which commands are rejected."""
    conditions: list[Condition]
    alarms: list[Alarms]
    curve: list[Point]

    @property
    def within_budget(self) -> Point | None:
        """The lowest threshold such that it and all higher ones stay within `BUDGET`; None if there is none."""
        kept: Point | None = None
        for point in reversed(self.curve):
            if not point.speech.value <= BUDGET:
                break
            kept = point
        return kept

    def __str__(self) -> str:
        lines = [
            f"  commands within {self.after_talk_s:g} s after talk are rejected (--after-talk {self.after_talk_s:g})"
        ]
        lines += map(str, [*self.conditions, *self.alarms])
        if not self.curve:
            return "\n".join(lines)
        names = [name for name in TABLE if name in self.curve[0].misses]
        titles = ["threshold", "alarms/h: speech", "noise, events", *(f"missed {name}" for name in names)]
        lines.append("  " + "  ".join(titles))
        for point in self.curve:
            cells = [f"{point.threshold:g}", f"{point.speech.value:.2f}", f"{point.sounds.value:.2f}"]
            cells += [f"{100 * point.misses[name].value:.1f} %" for name in names]
            lines.append("  " + "  ".join(f"{c:>{len(title)}}" for c, title in zip(cells, titles, strict=True)))
        if not self.curve[0].speech.hours:
            return "\n".join(lines)
        kept = self.within_budget
        reached = f"from threshold {kept.threshold:g} on" if kept else "at none of these thresholds"
        lines.append(f"  at most {BUDGET:g} alarm per hour in speech: {reached}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        kept = self.within_budget
        return {
            "after_talk_s": self.after_talk_s,
            "conditions": [c.as_dict() for c in self.conditions],
            "alarms": [a.as_dict() for a in self.alarms],
            "curve": [p.as_dict() for p in self.curve],
            "within_budget": kept.as_dict() if kept else None,
        }


@dataclass(frozen=True)
class Live:
    """The live protocol's figures."""

    part: str
    thresholds: dict[str, float]
    """Thresholds of the bundle."""
    outcomes: list[Outcome]

    def __str__(self) -> str:
        least, most = min(self.thresholds.values()), max(self.thresholds.values())
        threshold = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        title = f"live, {self.part}, threshold {threshold}: ten commands"
        return "\n".join([title, *map(str, self.outcomes)])

    def as_dict(self) -> dict[str, object]:
        return {
            "part": self.part,
            "thresholds": self.thresholds,
            "outcomes": [outcome.as_dict() for outcome in self.outcomes],
        }


def score(placed: Sequence[Placed], examined: Sequence[Examined], scene: Scene) -> Condition:
    """Match each command with the first detection of its word, decided from its start to `LATE_S` after its end."""
    left, latencies, missed = detections_in(examined), [], []
    judged = [(round(d.confidence, 4), d) for d in left]
    for command in placed:
        for detection in left:
            if detection.word == command.word and command.start_s <= detection.at_s <= command.end_s + LATE_S:
                left.remove(detection)
                latencies.append(detection.at_s - command.end_s)
                break
        else:
            missed.append(command)
    return Condition(
        scene,
        Share(len(missed), len(placed)),
        len(left),
        tuple(round(x, 3) for x in latencies),
        tuple((confidence, d not in left) for confidence, d in judged),
        dict(Counter(cause_of(command, examined) for command in missed)),
    )


def cause_of(missed: Placed, examined: Sequence[Examined]) -> str:
    """Why a command was missed, judged by the utterance that overlaps it most."""

    def shared_s(one: Examined) -> float:
        start_s, end_s = bounds_s(one)
        return min(end_s, missed.end_s) - max(start_s, missed.start_s)

    holder = max(examined, key=shared_s, default=None)
    if holder is None or shared_s(holder) <= 0:
        return UNHEARD
    if holder.rejection:
        return holder.rejection.reason.value
    return LATE if missed.word in [d.word for d in holder.detections] else WRONG


def bounds_s(examined: Examined) -> tuple[float, float]:
    """Start and end of the utterance's sound, in seconds."""
    if examined.rejection:
        return examined.rejection.start_s, examined.rejection.end_s
    return examined.detections[0].start_s, examined.detections[-1].end_s


@dataclass(frozen=True)
class Silence:
    """Recordings without commands, concatenated to one stream."""

    source: str
    heard: Heard
    names: list[str]
    ends_s: list[float]
    """End of each recording in the stream."""

    def alarms(self, examined: Iterable[Examined]) -> Alarms:
        """Assign detections to recordings."""
        found = []
        for d in detections_in(examined):
            which = min(int(np.searchsorted(self.ends_s, d.start_s, "right")), len(self.names) - 1)
            begin_s = self.ends_s[which - 1] if which else 0.0
            own = replace(d, start_s=d.start_s - begin_s, end_s=d.end_s - begin_s, at_s=d.at_s - begin_s)
            found.append((self.names[which], own))
        return Alarms(self.source, self.heard.n_samples / SAMPLE_RATE_HZ / 3600, found)


def without_commands(
    recognizer: Recognizer, corpus: Corpus, part: str, name: str, config: ListenerConfig, commands: Sequence[str]
) -> Silence:
    """Process all recordings of one of `ALARMS`, without those of commands."""
    chosen = [int(i) for i in corpus.select(part, ALARMS[name]) if corpus.recordings[i].word not in commands]
    ends_s = np.cumsum([len(corpus[i]) for i in chosen]) / SAMPLE_RATE_HZ
    heard = hear(recognizer, (corpus[i] for i in chosen), config, commands)
    return Silence(name, heard, [name_of(corpus, i) for i in chosen], ends_s.tolist())


def name_of(corpus: Corpus, index: int) -> str:
    path = corpus.recordings[index].path
    return f"{path.parent.name}/{path.name}"


@dataclass(frozen=True)
class Run:
    """All streams of the protocol with their readings, ready for decisions."""

    words: tuple[str, ...]
    """The commands to report."""
    scenes: list[tuple[Scene, list[Placed], Heard]]
    silences: list[Silence]

    def conditions(self, thresholds: Mapping[str, float], config: ListenerConfig) -> list[Condition]:
        return [score(placed, decide(heard, thresholds, config), scene) for scene, placed, heard in self.scenes]

    def alarms(self, thresholds: Mapping[str, float], config: ListenerConfig) -> list[Alarms]:
        return [silence.alarms(decide(silence.heard, thresholds, config)) for silence in self.silences]

    def point(self, threshold: float, config: ListenerConfig) -> Point:
        thresholds = dict.fromkeys(self.words, threshold)
        misses = {c.scene.name: c.misses for c in self.conditions(thresholds, config)}
        return Point(threshold, misses, {a.source: a.rate for a in self.alarms(thresholds, config)})


def run_live(
    recognizer: Recognizer,
    corpus: Corpus,
    part: str,
    commands: Sequence[str],
    n_words: int = 300,
    names: Sequence[str] | None = None,
    config: ListenerConfig = ListenerConfig(),  # noqa: B008 - frozen
) -> Run:
    """Compose and process all streams of the protocol.

    Args:
        n_words: commands per scene.
        names: scenes and kinds of audio without commands; default: all.
    Raises:
        ConfigError: a name is unknown.
        DataError: a command has no recordings.
    """
    known = [*(scene.name for scene in SCENES), *ALARMS]
    wanted = known if names is None else names
    strange = [name for name in wanted if name not in known]
    if strange:
        raise ConfigError(f"no scene {strange[0]!r}; there are: {', '.join(known)}")
    stage = Stage(corpus, part, commands, n_words)
    scenes = []
    for scene in SCENES:
        composed = stage.compose(scene) if scene.name in wanted else None
        if composed:
            stream, placed = composed
            scenes.append((scene, placed, hear(recognizer, [stream], config, commands)))
    silences = [without_commands(recognizer, corpus, part, name, config, commands) for name in ALARMS if name in wanted]
    return Run(tuple(commands), scenes, [silence for silence in silences if silence.names])


def evaluate_live(
    recognizer: Recognizer,
    corpus: Corpus,
    part: str,
    commands: Sequence[str],
    n_words: int = 300,
    thresholds: Sequence[float] = THRESHOLDS,
    after_talk_s: Sequence[float] = (ListenerConfig.after_talk_s,),
    names: Sequence[str] | None = None,
) -> Live:
    """Measure misses, latency and false alarms with the bundle's thresholds, and a curve over other thresholds.

    Args:
        commands: the words to report.
        n_words: commands per scene.
        thresholds: thresholds of the curve.
        after_talk_s: settings of `ListenerConfig.after_talk_s`; each gives one `Outcome`.
        names: scenes and kinds of audio without commands; default: all.
    """
    own = thresholds_for(recognizer, commands, None)
    run = run_live(recognizer, corpus, part, commands, n_words, names)
    outcomes = []
    for seconds in after_talk_s:
        config = ListenerConfig(after_talk_s=seconds)
        curve = [run.point(threshold, config) for threshold in thresholds]
        outcomes.append(Outcome(seconds, run.conditions(own, config), run.alarms(own, config), curve))
    return Live(part, own, outcomes)


def draw_live(result: Live, target: Path) -> None:
    """Draw misses against false alarms per hour, in speech and in other sounds, with one curve per scene."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5 * len(result.outcomes)), layout="constrained")
    rows = figure.subplots(len(result.outcomes), 2, sharey=True, squeeze=False)
    for outcome, row in zip(result.outcomes, rows, strict=True):
        for name in outcome.curve[0].misses:
            misses = [100 * point.misses[name].value for point in outcome.curve]
            for axes, kind in zip(row, ("speech", "sounds"), strict=True):
                rates = [max(np.nan_to_num(getattr(point, kind).value), 0.1) for point in outcome.curve]
                style = "--" if "room" in name else ":" if "after" in name else "-"
                axes.plot(rates, misses, style, marker=".", label=name)
        for axes, title in zip(row, ("speech", "noise and events"), strict=True):
            axes.axvline(BUDGET, color="grey", linestyle=":")
            axes.set(xscale="log", xlabel=f"false alarms per hour in {title} (0 drawn at 0.1)")
            axes.grid(alpha=0.3)
        row[0].set(ylabel="commands missed (%)", ylim=(0, None), title=f"after talk {outcome.after_talk_s:g} s")
        row[1].legend(fontsize=8)
    thresholds = [point.threshold for point in result.outcomes[0].curve]
    figure.suptitle(f"Live, {result.part}: thresholds {thresholds[0]:g} to {thresholds[-1]:g}")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
