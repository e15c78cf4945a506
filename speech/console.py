"""What all programs share: their options, the lines and the status line on stderr, their exit status.

This module imports nothing heavy at its top, so that `--version` and `--help` are quick.
"""

import argparse
import difflib
import io
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech import __version__
from speech.bundle import DEFAULT_MODEL
from speech.errors import BundleError, ConfigError, exit_status
from speech.settings import load_thresholds, match_name, read_text, read_toml, thresholds_file

if TYPE_CHECKING:
    from speech.grammar import Grammar
    from speech.recognizer import Recognizer
    from speech.segment import ListenerConfig
    from speech.sound.files import Block
    from speech.sound.microphone import Microphone

DEMO = Path(__file__).parent / "demo.flac"
"""The recording that ships with the package: ten commands and a sentence."""
REDRAW_S = 0.1
METER_WIDTH = 20
QUIETEST_DB = -60.0
"""Level in dB relative to full scale at which the meter is empty."""
N_WORDS = 4
ERASE = "\r\x1b[K"
LONG_S = 60.0
"""A file at least this long, in seconds, shows its progress instead of its level."""
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a program."""


class Console:
    """Prints lines on stderr and, on a terminal, draws a status line below them: audio level and last words.

    Args:
        quiet: omit the status line and information; errors and warnings are still printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._stream, self._quiet = sys.stderr, quiet
        self._is_live = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()  # actions call `tell` from their own threads
        self._is_drawn, self._drawn_s = False, -math.inf
        self._words: deque[str] = deque(maxlen=N_WORDS)
        self.sign = ""
        """Text between the meter and the words."""
        self._power, self._n_samples = 0.0, 0
        self._length_s = 0.0

    def begin(self, seconds: float | None = None) -> None:
        """A new source begins.

        Args:
            seconds: length of a file that is not played in real time; from `LONG_S` on its progress is shown.
        """
        self.clear()
        self._length_s = seconds if seconds and seconds >= LONG_S else 0.0

    def tell(self, text: str) -> None:
        """Print a line, even if `quiet`; may be called from any thread."""
        with self._lock:
            self._erase()
            self._write(text + "\n")

    def inform(self, text: str) -> None:
        """Print a line unless `quiet`."""
        if not self._quiet:
            self.tell(text)

    def note(self, text: str) -> None:
        """Add a detection or a rejection to the words in the status line."""
        self._words.append(text)

    def clear(self) -> None:
        """Erase the status line: before something is printed on stdout, or at the end."""
        with self._lock:
            self._erase()

    def heard(self, block: "Block", heard_s: float = 0.0) -> None:
        """Redraw the status line, at most every `REDRAW_S`.

        Args:
            block: the next samples (time,); empty while waiting for the device.
            heard_s: their end in seconds since the source began.
        """
        if not self._is_live:
            return
        self._power += float(block @ block)
        self._n_samples += len(block)
        now_s = time.monotonic()
        if now_s - self._drawn_s < REDRAW_S:
            return
        level = meter(self._power, self._n_samples)
        if self._length_s:
            level = f"{bar(heard_s / self._length_s)} {heard_s:.0f}/{self._length_s:.0f} s"
        with self._lock:
            text = "  ".join([level, *filter(None, [self.sign]), *self._words])
            self._write(ERASE + text[: shutil.get_terminal_size().columns - 1])
            self._is_drawn = True
        self._drawn_s, self._power, self._n_samples = now_s, 0.0, 0

    def _erase(self) -> None:
        if self._is_drawn:
            self._write(ERASE)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            self._stream.write(text)
            self._stream.flush()


def bar(share: float) -> str:
    return f"[{'#' * round(METER_WIDTH * share):<{METER_WIDTH}}]"


def meter(power: float, n_samples: int) -> str:
    """A bar and the level in dB relative to full scale.

    Args:
        power: sum of squares of the samples.
        n_samples: their number; 0: waiting for the device.
    """
    if not n_samples:
        return f"[{'waiting':^{METER_WIDTH}}]       "
    level_db = 10 * math.log10(max(power / n_samples, 10 ** (QUIETEST_DB / 10)))
    return f"{bar(1 - level_db / QUIETEST_DB)} {level_db:3.0f} dB"


def counted(n: int, noun: str) -> str:
    """The number with its noun: 1 command, 2 commands."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, with the nearest option for a misspelt one; has `--version`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = super().parse_args(args, namespace)
        for action in self._all_actions:
            left = getattr(arguments, action.dest, None)
            if action.option_strings and action.nargs != "*" and action.default != [] and left == []:  # from --name=--
                self.error(f"{action.option_strings[0]} needs a value")
        return arguments

    @property
    def _all_actions(self) -> list[argparse.Action]:
        """Its own and those of its subcommands."""
        subparsers = [
            p for action in self._actions if isinstance(action.choices, dict) for p in action.choices.values()
        ]
        return [action for parser in (self, *subparsers) for action in parser._actions]

    def error(self, message: str) -> Any:
        if message.startswith("unrecognized"):
            wrong = next((word for word in message.split() if word.startswith("-")), "").partition("=")[0]
            known = {option for action in self._all_actions for option in action.option_strings} - {wrong}
            nearest = difflib.get_close_matches(wrong, known, 1)
            message += "".join(f"; did you mean {option}?" for option in nearest) or "; --help shows all options"
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_program(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace, Console], int | None],
    argv: Sequence[str] | None = None,
    os_errors: str = "",
    interrupted: str = "",
) -> int:
    """What the `main` of a program does.

    Args:
        parse: the command line -> its arguments; `quiet` among them makes the console quiet.
        run: the program; it may return an exit status.
        os_errors: as for `exit_status`.
        interrupted: line for a program that is interrupted before it is done, which then fails; "": that is its end.
    Returns:
        the exit status: 0 success, 1 an error (one line on stderr), 2 wrong usage.
    """
    settle_streams()
    arguments = parse(argv)
    console = Console(getattr(arguments, "quiet", False))
    watch_signals()

    def end() -> int:
        console.clear()
        if interrupted:
            console.tell(interrupted)
        return int(bool(interrupted))

    return exit_status(lambda: run(arguments, console), console.tell, os_errors, end)


def settle_streams() -> None:
    """Make standard output accept any text, and replace closed standard streams with the null device.

    Otherwise a file opened later could get the descriptor of a closed stderr, and messages would end up in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a window without a console
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may contain characters that this encoding lacks


def watch_signals() -> None:
    """End on each of `SIGNALS` as on Ctrl-C, except those that are ignored from the start (as nohup does).

    Further signals are ignored during shutdown, which takes a few seconds at most.
    """

    def interrupt(*_: object) -> None:
        for kind in SIGNALS:
            signal.signal(kind, lambda *_: None)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for kind in SIGNALS:
            if signal.getsignal(kind) != signal.SIG_IGN:
                signal.signal(kind, interrupt)


def add_model(group: Any) -> None:
    """Add the options that `make_recognizer` and `chosen_words` read."""
    group.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    group.add_argument("--words", metavar="yes,no,...", help="only these words (default: all known words)")
    own = group.add_mutually_exclusive_group()
    own.add_argument(
        "--own", nargs="?", const="", metavar="DIR", help="recognise the words of speech-teach (default: if any)"
    )
    own.add_argument("--no-own", action="store_true", help="recognise only the model's words")


def add_decision(group: Any) -> None:
    """Add the options that `chosen_thresholds`, `listener_config` and `chosen_grammar` read."""
    threshold = group.add_mutually_exclusive_group()
    threshold.add_argument("--threshold", type=float, metavar="X", help="confidence needed, 0..1")
    threshold.add_argument(
        "--thresholds", metavar="FILE", help="confidence for each word (default: what speech.calibrate saved for this "
        "model, or the model's own)",
    )  # fmt: skip
    group.add_argument(
        "--after-talk", type=float, metavar="S",
        help="seconds after longer speech in which commands are rejected (default: 1.8 s); 0 accepts a command right "
        "after a sentence, but gives more false alarms from a television",
    )  # fmt: skip
    group.add_argument(
        "--grammar", metavar="TEXT|FILE", help="sentences that may be said, for --model connected: (left|right)+ | stop"
    )


def add_microphone(group: Any, source: Any = None) -> None:
    """Add --device (to `source`, if given) and --channel."""
    (source or group).add_argument("--device", metavar="N|NAME", help="input device by number or part of its name")
    group.add_argument(
        "--channel", metavar="left|right|N|mix", help="channel of a device with several (default: the best)"
    )


def open_microphone(arguments: argparse.Namespace, console: Console, **settings: Any) -> "Microphone":
    """The microphone of `add_microphone`'s options; further settings as of `Microphone`, which raises ConfigError."""
    from speech.sound import channels
    from speech.sound.microphone import Microphone
    from speech.sound.sources import number_or_name

    channel = channels.parse(arguments.channel or "best")
    return Microphone(number_or_name(arguments.device), tell=console.tell, channel=channel, **settings)


def make_recognizer(arguments: argparse.Namespace, console: Console) -> "Recognizer":
    """Load the bundle, with the user's own words if there are any and the bundle can recognise them.

    Raises:
        BundleError: as for `Recognizer.load` and `hear_also`.
        ConfigError: `--own` names a folder without words.
    """
    from speech.own.words import OwnWords
    from speech.recognizer import Recognizer

    recognizer, folder = Recognizer.load(arguments.model), arguments.own
    if arguments.no_own or (folder is None and recognizer.info.has_steps):
        return recognizer
    try:
        own = OwnWords.load(folder or None)
    except ConfigError:  # no home, so nothing was taught
        if folder is not None:
            raise
        return recognizer
    if folder is not None and not own and not own.notices:
        raise ConfigError(f"no own words in {own.folder}; teach one with: speech-teach WORD")
    try:
        recognizer.hear_also(own)
    except BundleError as error:
        if folder is not None:
            raise
        own.notices.append(f"your own words are not recognised: {error}")
    for notice in own.notices:
        console.tell(f"note: {notice}")
    if recognizer.own:
        console.inform(f"own words: {', '.join(own)}")
    return recognizer


def model_name(arguments: argparse.Namespace) -> str:
    """The bundle's name without folder and suffix, for messages and files."""
    return Path(arguments.model or DEFAULT_MODEL).stem


def chosen_words(arguments: argparse.Namespace, known: Sequence[str]) -> list[str] | None:
    """The words of `--words`, written as those that are known; None if the option is missing."""
    return None if arguments.words is None else [match_name(word, known) for word in arguments.words.split(",")]


def chosen_thresholds(
    arguments: argparse.Namespace, recognizer: "Recognizer", console: Console
) -> float | dict[str, float] | None:
    """What `Listener` takes as `threshold`.  Without options: the thresholds that were calibrated for this bundle.

    Raises:
        ConfigError: the file of `--thresholds` can't be used.
    """
    if arguments.threshold is not None:
        return float(arguments.threshold)
    key = recognizer.info.key
    path = arguments.thresholds or calibrated_thresholds(model_name(arguments), key, console)
    return load_thresholds(path, recognizer.words, key, console.tell) if path else None


def calibrated_thresholds(model: str, key: str, console: Console) -> Path | None:
    """The file that speech.calibrate saved for this bundle, if any."""
    try:
        path = thresholds_file(model)
    except ConfigError:  # no home
        return None
    if not os.path.isfile(path):
        return None
    if read_toml(path).get("model") != key:
        console.tell(f"note: {path} is not used: calibrated for another version of {model}; calibrate again")
        return None
    console.inform(f"thresholds: {path}")
    return path


def listener_config(arguments: argparse.Namespace) -> "ListenerConfig":
    """The settings of the Listener.  Raises ConfigError for a value out of range."""
    from speech.segment import ListenerConfig

    given = {"after_talk_s": arguments.after_talk, "wake_for_s": getattr(arguments, "wake_for", None)}
    return ListenerConfig(**{name: value for name, value in given.items() if value is not None})


def chosen_grammar(text_or_path: str | None, words: Sequence[str]) -> "Grammar | None":
    """Parse a grammar from a text or a file, for a stream in which its sentences follow one another.

    Raises:
        ConfigError: the file can't be read, or the grammar is wrong.
    """
    from speech.grammar import Grammar

    if text_or_path is None:
        return None
    is_path = text_or_path not in words and any(mark in text_or_path for mark in "./\\") and " " not in text_or_path
    with suppress(OSError, ValueError):  # too long for a file name, or not a valid one
        is_path |= os.path.isfile(text_or_path)
    return Grammar.parse(read_text(text_or_path) if is_path else text_or_path, words).repeated()
