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
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from speech.bundle import DEFAULT_MODEL
from speech.errors import AudioError, ConfigError, exit_status
from speech.listener import Listener
from speech.recognizer import Recognizer, load_with_own
from speech.results import Detection
from speech.settings import read_toml
from speech.sound.files import Block, read_blocks
from speech.sound.microphone import Microphone
from speech.sound.sources import number_or_name
from speech.status import settle_streams

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
            f"{self.n_alarms} false alarms in {self.hours:.2f} h, {sum(self.model_alarms.values())} before: "
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


@dataclass(frozen=True)
class Heard:
    """The false alarms in the audio, and its length."""

    alarms: list[Detection]
    seconds: float


def hear(listener: Listener, streams: Streams, note: Callable[[float, int], None]) -> Heard:
    """Run the listener on audio without commands: each detection is a false alarm.

    Raises:
        AudioError: too little audio, or silence only.
    """
    alarms: list[Detection] = []
    done_s, peak = 0.0, 0.0
    for stream in streams:
        for block in stream:
            alarms += listener.feed(block)
            peak = max(peak, float(np.abs(block).max(initial=0)))
            note(done_s + listener.heard_s, len(alarms))
        done_s += listener.heard_s
        alarms += listener.flush()
    if done_s < LEAST_S:
        raise AudioError(f"only {done_s:.0f} s of audio; a calibration needs at least a minute, better hours")
    if peak < SILENT:
        raise AudioError("all of the audio is silent; is the microphone muted?")
    return Heard(alarms, done_s)


def calibrate(
    recognizer: Recognizer,
    streams: Streams,
    budget: float,
    words: Sequence[str] | None = None,
    allow_lower: bool = False,
    note: Callable[[float, int], None] = lambda heard_s, n_alarms: None,
) -> Calibration:
    """Choose thresholds so that audio without commands causes no more false alarms than the budget.

    Args:
        recognizer: a loaded bundle.
        streams: audio without commands.
        budget: allowed false alarms per hour, of all words together.
        words: the words to listen for; default: all words of the bundle.
        allow_lower: also lower thresholds, down to `FLOOR`, if the audio permits it.
        note: called with the seconds processed so far and the number of false alarms in them.
    Raises:
        AudioError: too little audio, or silence only.
        ConfigError: a word that is not in the bundle.
    """
    model = Listener(recognizer, words).thresholds
    lowest = {word: min(FLOOR, value) for word, value in model.items()} if allow_lower else model
    heard = hear(Listener(recognizer, words, lowest), streams, note)
    hours = heard.seconds / 3600
    thresholds = raised(lowest, heard.alarms, allowed(budget, hours))
    before, after = (count(heard.alarms, values) for values in (model, thresholds))
    return Calibration(thresholds, model, after, before, hours, budget)


class Files:
    """Audio files as streams; one that can't be read is reported and skipped.

    Raises:
        AudioError: there are no files.
    """

    def __init__(self, paths: Iterable[str | Path], sample_rate_hz: int, tell: Callable[[str], None]) -> None:
        self._paths = list(dict.fromkeys(file for path in paths for file in audio_files(Path(path))))
        self._rate, self._tell, self.failed = sample_rate_hz, tell, False
        if not self._paths:
            raise AudioError("no audio files there")

    def __iter__(self) -> Iterator[Iterable[Block]]:
        return (self._blocks(path) for path in self._paths)

    def _blocks(self, path: Path) -> Iterator[Block]:
        """Blocks of a file, up to where it is damaged."""
        try:
            yield from read_blocks(path, self._rate)
        except AudioError as error:
            self._tell(f"error: {error}")
            self.failed = True


def audio_files(path: Path) -> list[Path]:
    """The file itself, or all files in a folder and its subfolders with a suffix of an audio format."""
    if not path.is_dir():
        return [path]
    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".oga", ".aif"}
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes - {".raw"} and p.is_file())


class Progress:
    """A progress bar on a terminal; elsewhere nothing is shown.

    Args:
        total_s: seconds of audio; None if unknown.
    """

    def __init__(self, total_s: float | None = None) -> None:
        from tqdm import tqdm  # not at the top: speech.listen imports this module and must start quickly

        self._bar = tqdm(total=total_s, unit=" s", disable=None, leave=False)

    def tell(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def heard(self, heard_s: float, n_alarms: int) -> None:
        self._bar.set_postfix_str(f"{n_alarms} false alarms", refresh=False)
        self._bar.update(round(heard_s) - self._bar.n)

    def clear(self) -> None:
        self._bar.close()


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event; a second one interrupts as usual."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def from_microphone(device: str | None, minutes: float, rate_hz: int, progress: Progress) -> Iterator[Block]:
    """Blocks of a microphone for some minutes, or until Ctrl-C; the audio is not stored."""
    n_heard = 0
    with Microphone(number_or_name(device), tell=progress.tell) as microphone, first_interrupt() as asked:
        progress.tell(
            f"listening on {microphone.device.name} for {minutes:g} min; no audio is kept; "
            "say no commands; Ctrl-C ends early"
        )
        for block in microphone.blocks(rate_hz):
            n_heard += len(block)
            yield block
            if asked.is_set():
                progress.tell(f"ended after {n_heard / rate_hz / 60:.1f} min")
            if asked.is_set() or n_heard >= 60 * minutes * rate_hz:
                break


def default_path() -> Path:
    """The user's file of thresholds: `speech/thresholds.toml` in $XDG_CONFIG_HOME, %APPDATA% or ~/.config."""
    folder = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "speech" / "thresholds.toml"


def save_thresholds(path: Path, calibration: Calibration, model: str) -> None:
    """Write a file for `load_thresholds`, atomically.

    Raises:
        ConfigError: the file can't be written.
    """
    figures = calibration
    lines = [
        "# Lowest confidence that is accepted for each word; written by speech.calibrate, may be edited.",
        f"# model {model!r}: {figures.n_alarms} false alarms in {figures.hours:.2f} h without commands,",
        f"# at most {figures.upper_bound:.2f} per hour at 95 % confidence",
        "[thresholds]",
        *(f"{json.dumps(word, ensure_ascii=False)} = {value:.4g}" for word, value in figures.thresholds.items()),
    ]
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"can't write the thresholds to {path}: {error.strerror}") from error


def load_thresholds(path: str | Path, words: Sequence[str]) -> dict[str, float]:
    """Read the table `[thresholds]` of a TOML file: for each word the lowest confidence that is accepted.

    Args:
        path: a file as written by `save_thresholds`.
        words: the words of the model.
    Raises:
        ConfigError: the file can't be read or is malformed, a word is not known, or a value is outside 0..1.
    """
    table = read_toml(path).get("thresholds")
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"{path} lacks a table [thresholds] with lines such as: yes = 0.8")
    for word, value in table.items():
        if word not in words:
            raise ConfigError(f"{path}: the model does not know {word!r}; it knows {', '.join(words)}")
        if type(value) not in (int, float) or not 0 < value <= 1:
            raise ConfigError(f"{path}: the threshold of {word!r} must be a number in 0..1, not {value!r}")
    return {word: float(value) for word, value in table.items()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m speech.calibrate",
        description="Raise thresholds until false alarms in audio without commands are within the budget.",
    )
    parser.add_argument(
        "--budget", type=float, default=0.5, metavar="X", help="allowed false alarms per hour (default: 0.5)"
    )
    parser.add_argument("--audio", nargs="+", metavar="PATH", help="files or folders (default: the microphone)")
    parser.add_argument("--device", metavar="N|NAME", help="input device by number or part of its name")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help=f"how long to listen to the microphone (default: {MINUTES:g})"
    )
    parser.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    parser.add_argument("--words", metavar="yes,no,...", help="only these words (default: all words of the model)")
    own = parser.add_mutually_exclusive_group()
    own.add_argument("--own", nargs="?", const="", metavar="DIR", help="as of speech-listen")
    own.add_argument("--no-own", action="store_true", help="only the model's words")
    parser.add_argument("--allow-lower", action="store_true", help=f"also lower thresholds, at most to {FLOOR}")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: {default_path()}".replace("%", "%%"))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    arguments = parser.parse_args(argv)
    if arguments.audio and (arguments.minutes is not None or arguments.device):
        parser.error("--minutes and --device belong to the microphone")
    if not 0 < arguments.budget < math.inf:
        parser.error("--budget must be positive")
    if arguments.minutes is not None and not LEAST_S / 60 <= arguments.minutes < math.inf:
        parser.error("--minutes must be at least 1")
    return arguments


def run(arguments: argparse.Namespace, progress: Progress) -> int:
    """Calibrate, save and print.  Returns the exit status."""
    recognizer = load_with_own(arguments.model, arguments.own, arguments.no_own, progress.tell, progress.tell)
    rate = recognizer.info.sample_rate_hz
    words = [word.strip() for word in arguments.words.split(",")] if arguments.words is not None else None
    Listener(recognizer, words)  # finds an unknown word before an hour has passed
    source: Files | list[Iterator[Block]]
    if arguments.audio:
        source = Files(arguments.audio, rate, progress.tell)
    else:
        source = [from_microphone(arguments.device, arguments.minutes or MINUTES, rate, progress)]
    result = calibrate(recognizer, source, arguments.budget, words, arguments.allow_lower, progress.heard)
    progress.clear()
    path = arguments.output or default_path()
    save_thresholds(path, result, str(arguments.model or DEFAULT_MODEL.stem))
    print(json.dumps(result.as_dict() | {"path": str(path)}) if arguments.json else result, flush=True)
    progress.tell(f"saved to {path}")
    needed = poisson_bound(0) / result.budget
    if result.hours < needed:
        progress.tell(
            f"note: to show at most {result.budget:g} per hour takes {needed:.1f} h of audio without false alarms"
        )
    if result.stubborn:
        progress.tell(
            f"error: over the budget even at {HIGHEST}: {', '.join(result.stubborn)}; was it said? "
            "If not, omit it with --words"
        )
    failed = isinstance(source, Files) and source.failed
    return int(bool(result.stubborn or failed))


def main(argv: list[str] | None = None) -> int:
    """Run the program.  Returns the exit status: 0 success, 1 an error (one line on stderr), 2 wrong usage."""
    settle_streams()
    arguments = parse(argv)
    progress = Progress(None if arguments.audio else 60 * (arguments.minutes or MINUTES))

    def interrupted() -> int:
        progress.tell("interrupted; nothing was saved")
        return 1

    return exit_status(lambda: run(arguments, progress), progress.tell, interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
