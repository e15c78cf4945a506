"""The live protocol: commands in many scenes, and audio without commands, through the parts of the Listener.

Each stream is cut into utterances and each utterance is read once.  Thresholds and the time after talk only change the
decision, so many thresholds cost little more than one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.sounds import Waveform
from recipes.metrics import Rate, Share
from recipes.protocols.scenes import SCENES, Placed, Recordings, Stage
from speech.decide import Decision, make_reader
from speech.errors import ConfigError
from speech.listener import thresholds_for
from speech.recognizer import Recognizer
from speech.results import Detection, Examined, Reason
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Segmenter, Utterance, counted, utterances_in

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
NO_UTTERANCE, WRONG, LATE = "no utterance", "wrong word", "too late"
"""Why a command was missed, in addition to the reasons of `speech.results.Reason`."""
UNMEASURED = Rate(0, 0.0)


@dataclass(frozen=True)
class ReadStream:
    """A stream that was cut into utterances, with one reading of each."""

    utterances: tuple[Utterance, ...]
    """Without their audio."""
    readings: Mapping[int, Examined]
    """The reading of each utterance, by `Utterance.begin`; utterances that are too long have none."""
    n_samples: int
    max_s: float
    """Length above which an utterance is too long to be read."""


class ReadBefore:
    """A reader that returns stored readings, with a word below its threshold rejected as unsure.

    Args:
        stream: the stored readings.
        thresholds: of the words to report, 0..1.
    """

    def __init__(self, stream: ReadStream, thresholds: Mapping[str, float]) -> None:
        self._readings, self._thresholds, self.max_s = stream.readings, thresholds, stream.max_s

    def reset(self) -> None:
        """A new stream begins."""

    def read(self, utterance: Utterance) -> Examined:
        reading = self._readings[utterance.begin]
        if reading.reason is None and any(word.confidence < self._thresholds[word.word] for word in reading.words):
            return replace(reading, reason=Reason.UNSURE)
        return reading


def read_stream(
    recognizer: Recognizer, pieces: Iterable[Waveform], config: ListenerConfig, commands: Sequence[str]
) -> ReadStream:
    """Cut a stream into utterances and read each.

    Args:
        pieces: consecutive pieces of the stream, (time,) each.
    """
    reader = make_reader(recognizer, dict.fromkeys(commands, LEAST), config)
    lengths, nothing = list[int](), np.zeros(0, np.float32)
    utterances, readings = list[Utterance](), dict[int, Examined]()
    for utterance in utterances_in(counted(pieces, lengths), Segmenter(config, reader.max_s)):
        utterances.append(replace(utterance, waveform=nothing))
        if not utterance.is_long:
            readings[utterance.begin] = replace(reader.read(utterance), waveform=nothing)
    return ReadStream(tuple(utterances), readings, sum(lengths), reader.max_s)


def decide(stream: ReadStream, thresholds: Mapping[str, float], config: ListenerConfig) -> list[Examined]:
    """The decisions of a Listener with these settings for a stream."""
    decision = Decision(ReadBefore(stream, thresholds), config)
    return [decision.decide(utterance, stream.n_samples) for utterance in stream.utterances]


def detections_in(examined: Iterable[Examined]) -> list[Detection]:
    return [detection for one in examined for detection in one.detections]


@dataclass(frozen=True)
class Condition:
    """The figures of one scene."""

    name: str
    misses: Share
    false_alarms: int
    """Detections that match no command: repeated detections and wrong words."""
    latencies_s: tuple[float, ...]
    judged: tuple[tuple[float, bool], ...] = ()
    """For each detection: its confidence and whether it is right."""
    causes: Mapping[str, int] | None = None
    """Number of missed commands by reason."""

    @property
    def latency(self) -> str:
        """Median and 95th percentile."""
        if not self.latencies_s:
            return "-"
        median, late = 1000 * np.quantile(self.latencies_s, [0.5, 0.95])
        return f"{median:.0f} ms, 95 % {late:.0f} ms"

    def __str__(self) -> str:
        why = ", ".join(f"{cause} {n}" for cause, n in Counter(self.causes or {}).most_common())
        return (
            f"  {self.name:18}{'missed':8}{self.misses!s:32}false {self.false_alarms:3}   "
            f"latency {self.latency:20}  {why}"
        )


@dataclass(frozen=True)
class Alarms:
    """Detections in audio without commands."""

    source: str
    rate: Rate
    found: list[tuple[str, Detection]]
    """Each recording's name and a detection in it; times are relative to the recording."""

    def __str__(self) -> str:
        words = ", ".join(f"{word} {n}" for word, n in Counter(d.word for _, d in self.found).most_common())
        return f"  {self.source:20}{'alarms':8}{self.rate}   {words}"


@dataclass(frozen=True)
class Point:
    """The figures at one threshold for all words."""

    threshold: float
    misses: dict[str, Share]
    """Share of missed commands by the scene's name."""
    alarms: dict[str, Rate]
    """False alarms by kind of audio without commands; no hours if it was not measured."""

    @property
    def speech(self) -> Rate:
        return self.alarms.get("speech", UNMEASURED)

    @property
    def sounds(self) -> Rate:
        """False alarms in noise and events together."""
        return self.alarms.get("noise", UNMEASURED) + self.alarms.get("events", UNMEASURED)


@dataclass(frozen=True)
class Setting:
    """The figures for one value of `after_talk_s`."""

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
        title = f"commands within {self.after_talk_s:g} s after talk are rejected (--after-talk {self.after_talk_s:g})"
        lines = [f"  {title}", *map(str, [*self.conditions, *self.alarms])]
        if self.curve:
            names = [name for name in TABLE if name in self.curve[0].misses]
            rows = [["threshold", "alarms/h: speech", "noise, events", *(f"missed {name}" for name in names)]]
            for point in self.curve:
                rates = [f"{rate.value:.2f}" if rate.hours else "-" for rate in (point.speech, point.sounds)]
                misses = [f"{100 * point.misses[name].value:.1f} %" for name in names]
                rows.append([f"{point.threshold:g}", *rates, *misses])
            lines += [
                "  " + "  ".join(f"{x:>{len(head)}}" for x, head in zip(row, rows[0], strict=True)) for row in rows
            ]
        if self.curve and self.curve[0].speech.hours:
            kept = self.within_budget
            reached = f"from threshold {kept.threshold:g} on" if kept else "at none of these thresholds"
            lines.append(f"  at most {BUDGET:g} alarm per hour in speech: {reached}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"within_budget": self.within_budget}


@dataclass(frozen=True)
class Live:
    """The live protocol's figures."""

    part: str
    thresholds: dict[str, float]
    """Thresholds of the bundle."""
    settings: list[Setting]

    def __str__(self) -> str:
        least, most = min(self.thresholds.values()), max(self.thresholds.values())
        threshold = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        title = f"live, {self.part}, threshold {threshold}: {len(self.thresholds)} commands"
        return "\n".join([title, *map(str, self.settings)])


def score(placed: Sequence[Placed], examined: Sequence[Examined], name: str) -> Condition:
    """Match each command with the first detection of its word, decided from its start to `LATE_S` after its end."""
    left, latencies, missed = detections_in(examined), [], []
    found = list(left)
    for command in placed:
        for detection in left:
            if detection.word == command.word and command.start_s <= detection.at_s <= command.end_s + LATE_S:
                left.remove(detection)
                latencies.append(detection.at_s - command.end_s)
                break
        else:
            missed.append(command)
    return Condition(
        name,
        Share(len(missed), len(placed)),
        len(left),
        tuple(round(x, 3) for x in latencies),
        tuple((round(d.confidence, 4), d not in left) for d in found),
        dict(Counter(cause_of(command, examined) for command in missed)),
    )


def cause_of(missed: Placed, examined: Sequence[Examined]) -> str:
    """Why a command was missed, judged by the utterance that overlaps it most."""

    def shared_s(one: Examined) -> float:
        found = [one.rejection] if one.rejection else one.detections
        return min(found[-1].end_s, missed.end_s) - max(found[0].start_s, missed.start_s)

    holder = max(examined, key=shared_s, default=None)
    if holder is None or shared_s(holder) <= 0:
        return NO_UTTERANCE
    if holder.rejection:
        return holder.rejection.reason.value
    return LATE if missed.word in [d.word for d in holder.detections] else WRONG


@dataclass(frozen=True)
class Silence:
    """Recordings without commands, concatenated to one stream."""

    source: str
    stream: ReadStream
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
        return Alarms(self.source, Rate(len(found), self.stream.n_samples / SAMPLE_RATE_HZ / 3600), found)


def without_commands(
    recognizer: Recognizer,
    recordings: Recordings,
    part: str,
    name: str,
    config: ListenerConfig,
    commands: Sequence[str],
) -> Silence:
    """Process all recordings of one of `ALARMS`, without those of commands."""
    chosen = [i for i in recordings.select(part, ALARMS[name]) if recordings.recordings[i].word not in commands]
    ends_s = np.cumsum([len(recordings[i]) for i in chosen]) / SAMPLE_RATE_HZ
    stream = read_stream(recognizer, (recordings[i] for i in chosen), config, commands)
    paths = [recordings.recordings[i].path for i in chosen]
    return Silence(name, stream, [f"{path.parent.name}/{path.name}" for path in paths], ends_s.tolist())


@dataclass(frozen=True)
class Run:
    """All streams of the protocol with their readings, ready for decisions."""

    words: tuple[str, ...]
    """The commands to report."""
    scenes: list[tuple[str, list[Placed], ReadStream]]
    silences: list[Silence]

    def conditions(self, thresholds: Mapping[str, float], config: ListenerConfig) -> list[Condition]:
        return [score(placed, decide(stream, thresholds, config), name) for name, placed, stream in self.scenes]

    def alarms(self, thresholds: Mapping[str, float], config: ListenerConfig) -> list[Alarms]:
        return [silence.alarms(decide(silence.stream, thresholds, config)) for silence in self.silences]

    def point(self, threshold: float, config: ListenerConfig) -> Point:
        thresholds = dict.fromkeys(self.words, threshold)
        misses = {c.name: c.misses for c in self.conditions(thresholds, config)}
        return Point(threshold, misses, {a.source: a.rate for a in self.alarms(thresholds, config)})


def run_live(
    recognizer: Recognizer,
    recordings: Recordings,
    part: str,
    commands: Sequence[str],
    n_words: int = 300,
    names: Sequence[str] | None = None,
) -> Run:
    """Compose and process all streams of the protocol.

    Args:
        commands: the words to report.
        n_words: commands per scene.
        names: scenes and kinds of audio without commands; default: all.
    Raises:
        ConfigError: a name is unknown.
        DataError: a command has no recordings.
    """
    known = [*(scene.name for scene in SCENES), *ALARMS]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"no scene {name!r}; there are: {', '.join(known)}")
    wanted = known if names is None else names
    config, stage, scenes = ListenerConfig(), Stage(recordings, part, commands, n_words), []
    for scene in SCENES:
        composed = stage.compose(scene) if scene.name in wanted else None
        if composed:
            stream, placed = composed
            scenes.append((scene.name, placed, read_stream(recognizer, [stream], config, commands)))
    silences = [
        without_commands(recognizer, recordings, part, name, config, commands) for name in ALARMS if name in wanted
    ]
    return Run(tuple(commands), scenes, [silence for silence in silences if silence.names])


def evaluate_live(
    recognizer: Recognizer,
    recordings: Recordings,
    part: str,
    commands: Sequence[str],
    n_words: int = 300,
    thresholds: Sequence[float] = THRESHOLDS,
    after_talk_s: Sequence[float] = (ListenerConfig.after_talk_s,),
    names: Sequence[str] | None = None,
) -> Live:
    """Measure misses, latency and false alarms with the bundle's thresholds, and a curve over other thresholds.

    Args:
        thresholds: thresholds of the curve.
        after_talk_s: values of `ListenerConfig.after_talk_s`; each gives one `Setting`.
        n_words, names: see `run_live`.
    """
    own = thresholds_for(recognizer, commands, None)
    run = run_live(recognizer, recordings, part, commands, n_words, names)
    settings = []
    for seconds in after_talk_s:
        config = ListenerConfig(after_talk_s=seconds)
        curve = [run.point(threshold, config) for threshold in thresholds]
        settings.append(Setting(seconds, run.conditions(own, config), run.alarms(own, config), curve))
    return Live(part, own, settings)


def plot_live(result: Live, target: Path) -> None:
    """Draw misses against false alarms per hour, in speech and in other sounds, with one curve per scene.

    Where no such audio was measured, the panel says so and is empty.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5 * len(result.settings)), layout="constrained")
    rows = figure.subplots(len(result.settings), 2, sharey=True, squeeze=False)
    for setting, row in zip(result.settings, rows, strict=True):
        for axes, kind, title in zip(row, ("speech", "sounds"), ("speech", "noise and events"), strict=True):
            rates: list[Rate] = [getattr(point, kind) for point in setting.curve]
            is_measured = bool(rates[0].hours)
            for name in setting.curve[0].misses if is_measured else ():
                misses = [100 * point.misses[name].value for point in setting.curve]
                style = "--" if "room" in name else ":" if "after" in name else "-"
                axes.plot([max(rate.value, 0.1) for rate in rates], misses, style, marker=".", label=name)
            axes.axvline(BUDGET, color="grey", linestyle=":")
            label = f"false alarms per hour in {title} (0 drawn at 0.1)" if is_measured else f"{title}: not measured"
            axes.set(xscale="log", xlabel=label)
            axes.grid(alpha=0.3)
        row[0].set(ylabel="commands missed (%)", ylim=(0, None), title=f"after talk {setting.after_talk_s:g} s")
        row[1].legend(
            *max((axes.get_legend_handles_labels() for axes in row), key=lambda found: len(found[0])), fontsize=8
        )
    thresholds = [point.threshold for point in result.settings[0].curve]
    figure.suptitle(f"Live, {result.part}: thresholds {thresholds[0]:g} to {thresholds[-1]:g}")
    figure.savefig(target, dpi=110)
