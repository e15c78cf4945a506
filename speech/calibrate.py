"""Choose thresholds for a room: `python -m speech.calibrate --audio evening.wav`, or with the microphone.

Each word reported in audio without commands is a false alarm.  The thresholds of the words that cause false alarms are
raised until their number is within the budget; the most confident false alarms are the ones that remain.

Scores do not depend on thresholds, so one pass gives the false alarms at all higher thresholds: exactly for single
words, an upper limit for sequences, where one unsure word rejects the whole utterance.  The thresholds are fitted to
this audio, so other audio will have somewhat more false alarms; the upper bound does not include that.
"""

import argparse
import json
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from speech.console import (
    Console,
    Parser,
    add_microphone,
    add_model,
    chosen_words,
    counted,
    make_recognizer,
    model_name,
    open_microphone,
    run_program,
)
from speech.errors import AudioError, ConfigError
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.settings import thresholds_file
from speech.sound.files import Block, audio_files, read_blocks

FLOOR = 0.3
"""Lowest threshold with `allow_lower`."""
HIGHEST = 0.99
"""Highest threshold that is set."""
MINUTES = 60.0
"""Default time to listen to the microphone."""
LEAST_S = 60.0
"""Least audio for a calibration."""
SILENT = 10 ** (-75 / 20)
"""Audio with a lower peak counts as silent."""

Streams = Iterable[Iterable[Block]]
"""Streams of blocks at the model's rate."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and their false alarms on the audio that they were chosen on."""

    thresholds: dict[str, float]
    model_thresholds: dict[str, float]
    alarms: dict[str, int]
    """False alarms of each word with `thresholds`; words without any are omitted."""
    model_alarms: dict[str, int]
    """False alarms of each word with `model_thresholds`."""
    hours: float
    budget: float
    """Allowed false alarms per hour, of all words together."""

    @property
    def n_alarms(self) -> int:
        return sum(self.alarms.values())

    @property
    def upper_bound(self) -> float:
        """Upper bound of the false alarm rate per hour, at 95 % confidence."""
        return poisson_bound(self.n_alarms) / self.hours

    @property
    def stubborn(self) -> list[str]:
        """The words with false alarms even at `HIGHEST`, if those exceed the budget."""
        return sorted(self.alarms) if self.n_alarms > allowed(self.budget, self.hours) else []

    def as_dict(self) -> dict[str, object]:
        rates = {"rate": self.n_alarms / self.hours, "upper_bound_95": self.upper_bound}
        return asdict(self) | rates | {"stubborn": self.stubborn}

    def __str__(self) -> str:
        lines = [
            f"{counted(self.n_alarms, 'false alarm')} in {self.hours:.2f} h, {sum(self.model_alarms.values())} before: "
            f"{self.n_alarms / self.hours:.2f} per hour, at most {self.upper_bound:.2f} at 95 % confidence; "
            f"budget {self.budget:g}"
        ]
        for word, value in self.thresholds.items():
            before, after = self.model_alarms.get(word, 0), self.alarms.get(word, 0)
            lines.append(f"  {word:10}{self.model_thresholds[word]:.2f} -> {value:.2f}   alarms {before} -> {after}")
        return "\n".join(lines)


def allowed(budget: float, hours: float) -> int:
    """Number of false alarms that the budget allows."""
    return math.floor(budget * hours + 1e-9)


def poisson_bound(count: int, level: float = 0.95) -> float:
    """Exact upper bound of a Poisson mean: the mean at which `count` events or fewer have the probability 1 - `level`.

    Source: Garwood (1936); by bisection.
    """
    low, high = 0.0, count + 10 + 10 * math.sqrt(count)
    for _ in range(60):
        mean = (low + high) / 2
        few = math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))
        low, high = (mean, high) if few > 1 - level else (low, mean)
    return high


def just_over(confidence: float) -> float:
    """The next higher multiple of 0.01."""
    return (math.floor(100 * confidence + 1e-9) + 1) / 100


def raised(thresholds: Mapping[str, float], alarms: Iterable[Detection], n_allowed: int) -> dict[str, float]:
    """The thresholds just above all false alarms except the `n_allowed` most confident ones; at most `HIGHEST`."""
    values = dict(thresholds)
    for alarm in sorted(alarms, key=lambda a: a.confidence, reverse=True)[n_allowed:]:
        values[alarm.word] = max(values[alarm.word], min(HIGHEST, just_over(alarm.confidence)))
    return values


def count(alarms: Iterable[Detection], thresholds: Mapping[str, float]) -> dict[str, int]:
    """Number of false alarms of each word at these thresholds; words without any are omitted."""
    return dict(Counter(a.word for a in alarms if a.confidence >= thresholds[a.word]))


def false_alarms(
    listener: Listener, streams: Streams, note: Callable[[Block, float, int], None]
) -> tuple[list[Detection], float]:
    """Run the listener on audio without commands.  Returns what it reports, and the seconds of audio.

    Raises:
        AudioError: too little audio, or silence only.
    """
    alarms: list[Detection] = []
    done_s, peak = 0.0, 0.0
    for stream in streams:
        for block in stream:
            alarms += listener.feed(block)
            peak = max(peak, float(np.abs(block).max(initial=0)))
            note(block, done_s + listener.heard_s, len(alarms))
        done_s += listener.heard_s
        alarms += listener.flush()
    if done_s < LEAST_S:
        raise AudioError(f"only {done_s:.0f} s of audio; a calibration needs at least a minute, better hours")
    if peak < SILENT:
        raise AudioError("all of the audio is silent; is the microphone muted?")
    return alarms, done_s


def calibrate(
    recognizer: Recognizer,
    streams: Streams,
    budget: float,
    words: Sequence[str] | None = None,
    allow_lower: bool = False,
    note: Callable[[Block, float, int], None] = lambda block, heard_s, n_alarms: None,
) -> Calibration:
    """Choose thresholds so that audio without commands causes no more false alarms than the budget.

    Args:
        recognizer: a loaded bundle.
        streams: audio without commands.
        budget: allowed false alarms per hour, of all words together.
        words: the words to listen for; default: all words of the bundle.
        allow_lower: also lower thresholds, down to `FLOOR`, if the audio permits it.
        note: called with each block, the seconds processed so far and the number of false alarms in them.
    Raises:
        AudioError: too little audio, or silence only.
        ConfigError: a word that is not in the bundle.
    """
    model = Listener(recognizer, words).thresholds
    lowest = {word: min(FLOOR, value) for word, value in model.items()} if allow_lower else model
    alarms, seconds = false_alarms(Listener(recognizer, words, lowest), streams, note)
    hours = seconds / 3600
    thresholds = raised(lowest, alarms, allowed(budget, hours))
    before, after = (count(alarms, values) for values in (model, thresholds))
    return Calibration(thresholds, model, after, before, hours, budget)


def from_files(paths: Iterable[str], rate_hz: int, tell: Callable[[str], None]) -> Iterator[Iterator[Block]]:
    """Audio files, and those in folders, as streams; one that can't be read is reported and skipped.

    Raises:
        AudioError: there are no files.
    """

    def blocks_of(path: Path) -> Iterator[Block]:
        try:
            yield from read_blocks(path, rate_hz)  # up to where it is damaged
        except AudioError as error:
            tell(f"error: {error}")

    return map(blocks_of, audio_files(paths))


def from_microphone(arguments: argparse.Namespace, rate_hz: int, console: Console) -> Iterator[Block]:
    """Blocks of a microphone for some minutes, or until Ctrl-C; the audio is not stored."""
    n_heard, minutes, asked = 0, arguments.minutes or MINUTES, list[bool]()

    def ask(*_: object) -> None:  # a second Ctrl-C interrupts as usual
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    with open_microphone(arguments, console) as microphone:
        console.tell(
            f"listening on {microphone.device.name} for {minutes:g} min; no audio is kept; "
            "say no commands; Ctrl-C ends early"
        )
        before = signal.signal(signal.SIGINT, ask)
        try:
            for block in microphone.blocks(rate_hz):
                n_heard += len(block)
                yield block
                if asked:
                    console.tell(f"ended after {n_heard / rate_hz / 60:.1f} min")
                if asked or n_heard >= 60 * minutes * rate_hz:
                    return
        finally:
            signal.signal(signal.SIGINT, before)


def save_thresholds(path: Path, calibration: Calibration, model: str, key: str) -> None:
    """Write a file for `settings.load_thresholds`, atomically.

    Args:
        model: name of the bundle, for the reader.
        key: its `BundleInfo.key`.
    Raises:
        ConfigError: the file can't be written.
    """
    lines = [
        "# Lowest confidence that is accepted for each word; written by speech.calibrate, may be edited.",
        f"# {model}: {counted(calibration.n_alarms, 'false alarm')} in {calibration.hours:.2f} h without commands,",
        f"# at most {calibration.upper_bound:.2f} per hour at 95 % confidence",
        f'model = "{key}"',
        "[thresholds]",
        *(f"{json.dumps(word, ensure_ascii=False)} = {value:.4g}" for word, value in calibration.thresholds.items()),
    ]
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"can't write the thresholds to {path}: {error.strerror}") from error


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = Parser(
        prog="python -m speech.calibrate",
        description="Raise thresholds until false alarms in audio without commands are within the budget.",
    )
    parser.add_argument(
        "--budget", type=float, default=0.5, metavar="X", help="allowed false alarms per hour (default: 0.5)"
    )
    parser.add_argument("--audio", nargs="+", metavar="PATH", help="files or folders (default: the microphone)")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help=f"how long to listen to the microphone (default: {MINUTES:g})"
    )
    add_microphone(parser)
    add_model(parser)
    parser.add_argument("--allow-lower", action="store_true", help=f"also lower thresholds, at most to {FLOOR}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: where speech-listen looks for it")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    arguments = parser.parse_args(argv)
    if arguments.audio and (arguments.minutes is not None or arguments.device or arguments.channel):
        parser.error("--minutes, --device and --channel belong to the microphone")
    if not 0 < arguments.budget < math.inf:
        parser.error("--budget must be positive")
    if arguments.minutes is not None and not LEAST_S / 60 <= arguments.minutes < math.inf:
        parser.error("--minutes must be at least 1")
    return arguments


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Calibrate, save and print.  Returns the exit status."""
    recognizer, model = make_recognizer(arguments, console), model_name(arguments)
    rate_hz, words = recognizer.info.sample_rate_hz, chosen_words(arguments, recognizer.words)
    Listener(recognizer, words)  # finds an unknown word before an hour has passed
    path, problems = arguments.output or thresholds_file(model), []

    def report(problem: str) -> None:
        problems.append(problem)
        console.tell(problem)

    def show(block: Block, heard_s: float, n_alarms: int) -> None:
        console.sign = f"{heard_s / 60:.1f} min  {counted(n_alarms, 'false alarm')}"
        console.heard(block)

    source: Streams
    if arguments.audio:
        source = from_files(arguments.audio, rate_hz, report)
    else:
        source = [from_microphone(arguments, rate_hz, console)]
    result = calibrate(recognizer, source, arguments.budget, words, arguments.allow_lower, show)
    console.clear()
    save_thresholds(path, result, model, recognizer.info.key)
    print(json.dumps(result.as_dict() | {"path": str(path)}) if arguments.json else result, flush=True)
    console.tell(f"saved to {path}")
    needed = poisson_bound(0) / result.budget
    if result.hours < needed:
        console.tell(
            f"note: to show at most {result.budget:g} per hour takes {needed:.1f} h of audio without false alarms"
        )
    if result.stubborn:
        report(
            f"error: over the budget even at {HIGHEST}: {', '.join(result.stubborn)}; was it said? "
            "If not, omit it with --words"
        )
    return int(bool(problems))


main = partial(run_program, parse, run, interrupted="interrupted; nothing was saved")

if __name__ == "__main__":
    sys.exit(main())
