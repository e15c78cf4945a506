"""Print spoken commands: `python -m speech.listen`."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from pathlib import Path

from speech.actions import Actions
from speech.bundle import DEFAULT_MODEL
from speech.calibrate import load_thresholds
from speech.errors import AudioError, exit_status
from speech.grammar import Grammar, NGram
from speech.listener import Listener
from speech.options import parse
from speech.pausing import Pauser
from speech.recognizer import load_with_own
from speech.recorder import Recorder
from speech.results import Detection, Rejection, as_dict
from speech.segment import ListenerConfig
from speech.settings import read_text
from speech.sound import channels
from speech.sound.containers import RawFormat
from speech.sound.devices import list_devices
from speech.sound.files import Block, open_recording, read_blocks
from speech.sound.microphone import Microphone
from speech.sound.sources import limited, number_or_name, paced, standard_input, until
from speech.status import Console, settle_streams

DEMO = Path(__file__).parent / "demo.flac"
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the program."""


def read_grammar(text_or_path: str, words: Sequence[str]) -> Grammar:
    """Parse a grammar from a text or a file, for a stream in which its sentences follow one another."""
    try:
        is_file = Path(text_or_path).exists() and not Path(text_or_path).is_dir()
    except (OSError, ValueError):  # too long for a file name, or not a valid one
        is_file = False
    return Grammar.parse(read_text(text_or_path) if is_file else text_or_path, words).repeated()


def as_json(found: Detection | Rejection, file: str | None) -> str:
    """One JSON object; a rejection is marked as one."""
    return json.dumps(as_dict(found) | ({"file": file} if file else {}))


def show(detection: Detection, with_json: bool, file: str | None) -> None:
    """Print a detection as one line, at once."""
    if with_json:
        print(as_json(detection, file), flush=True)
    else:
        where = f"{file}: " if file else ""
        print(f"{where}{detection.start_s:8.2f} s  {detection.word:<8} {detection.confidence:4.2f}", flush=True)


def show_devices(as_json: bool, console: Console) -> None:
    """Print the input devices; * marks the default."""
    devices = list_devices()
    for device in devices:
        mark = "*" if device.is_default else " "
        if as_json:
            print(json.dumps(asdict(device)))
        else:
            print(f"{mark} {device.number:3}  {device}  ({device.channels} channels, {device.sample_rate_hz} Hz)")
    if not devices:
        console.tell("no input device")


class Session:
    """One run of the program: listens to its source, and prints, records and acts on the results."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        recognizer = load_with_own(arguments.model, arguments.own, arguments.no_own, console.inform, console.tell)
        words = [word.strip() for word in arguments.words.split(",")] if arguments.words is not None else None
        grammar = read_grammar(arguments.grammar, words or recognizer.info.words) if arguments.grammar else None
        language_model = None
        if arguments.language_model is not None:
            language_model = NGram.load(arguments.language_model, recognizer.info.words)
        threshold: float | dict[str, float] | None = arguments.threshold
        if arguments.thresholds:
            threshold = load_thresholds(arguments.thresholds, recognizer.words)
        config = ListenerConfig()
        if arguments.after_talk is not None:
            config = replace(config, after_talk_s=arguments.after_talk)
        if arguments.wake_for is not None:
            config = replace(config, wake_for_s=arguments.wake_for)
        wake = " ".join(arguments.wake.lower().split()) if arguments.wake else None
        self.listener = Listener(
            recognizer, words, threshold, config, grammar, self._reject, wake=wake, language_model=language_model
        )
        self.arguments, self.console, self.rate = arguments, console, recognizer.info.sample_rate_hz
        self.model = arguments.model or DEFAULT_MODEL.stem
        self.actions = self.recorder = None
        if arguments.actions:
            self.actions = Actions.load(arguments.actions, tuple(self.listener.thresholds), console.tell)
        if arguments.record:
            self.recorder = Recorder(arguments.record, self.rate, {"model": str(self.model)}, console.tell)
        self.pauser = Pauser(self.listener, path=arguments.pause_file, changed=self._note_pause)
        self.channel = channels.parse(arguments.channel or "best")
        self.n_detections, self.n_heard, self.failed = 0, 0, False
        self.overflows: int | None = None

    def run(self) -> int:
        """Listen until the source ends, then wait for the actions.  Returns the exit status."""
        arguments = self.arguments
        if arguments.stdin:
            self._standard_input()
        elif arguments.file:
            for path in arguments.file:
                self._file(path)
        elif arguments.demo:
            self.console.inform(f"listening to the demo recording, model {self.model}")
            self._listen(paced(read_blocks(DEMO, self.rate), self.rate), DEMO.name)
        else:
            self._microphone()
        if self.actions:
            self.actions.finish()
        return int(self.failed)

    def _file(self, path: str) -> None:
        try:
            recording = standard_input(RawFormat(), tell=self.console.inform) if path == "-" else open_recording(path)
            self._note_rate(recording.sample_rate_hz)
            blocks = recording.blocks(self.rate)
            if self.arguments.realtime:
                self._listen(paced(blocks, self.rate), path)
            else:
                self._listen(blocks, path, recording.seconds)
        except AudioError as error:
            self.console.tell(f"error: {error}")
            self.failed = True  # the other files are still read

    def _standard_input(self) -> None:
        encoding, rate_hz, channels = self.arguments.format, self.arguments.rate, self.arguments.channels
        raw = RawFormat(
            encoding or "s16le", self.rate if rate_hz is None else rate_hz, 1 if channels is None else channels
        )
        self.console.inform(f"listening to standard input, model {self.model}")
        recording = standard_input(raw, encoding is None, self.console.inform)
        self._note_rate(recording.sample_rate_hz)
        self._listen(recording.blocks(self.rate), "standard input")

    def _note_rate(self, rate_hz: int) -> None:
        if rate_hz < self.rate:
            self.console.inform(
                f"note: recorded at {rate_hz} Hz, so nothing above {rate_hz // 2} Hz is audible; expect more misses"
            )

    def _microphone(self) -> None:
        device, seconds = number_or_name(self.arguments.device), self.arguments.seconds
        reconnect, wait = not self.arguments.no_reconnect, self.arguments.wait
        with Microphone(device, reconnect, self.console.tell, self.channel, wait) as microphone:
            found, self.pauser.discard = microphone.device, microphone.discard
            self.console.inform(
                f"listening on {found.name} at {found.sample_rate_hz} Hz, model {self.model}; Ctrl-C ends"
            )
            self._note_rate(found.sample_rate_hz)
            try:
                self._listen(until(microphone.blocks(self.rate), seconds), found.name)
            finally:
                self.overflows = microphone.overflows

    def _note_pause(self, is_paused: bool) -> None:
        self.console.inform("paused" if is_paused else "listening again")

    def _listen(self, blocks: Iterable[Block], source: str, seconds: float | None = None) -> None:
        """Process a source from its beginning.

        Args:
            seconds: length of the source, if it is read as fast as possible.
        """
        self.listener.reset()
        self.console.begin(min(seconds, self.arguments.seconds or math.inf) if seconds else None)
        self.source = source
        if self.actions:
            self.actions.reset()
        if self.recorder:
            self.recorder.reset()
            self.recorder.about["source"] = source
        for block in limited(blocks, self.arguments.seconds, self.rate):
            self.n_heard += len(block)
            block = self.pauser.let_through(block)
            if self.recorder:
                self.recorder.feed(block)
            self._react(self.listener.feed(block))
            self.console.sign = self._sign
            self.console.heard(block, self.listener.heard_s)
        self._react(self.listener.flush())

    @property
    def _sign(self) -> str:
        """For the status line: with a wake word, whether commands are accepted now."""
        return "" if not self.arguments.wake else "awake " if self.listener.is_awake else "asleep"

    @property
    def _file_name(self) -> str | None:
        """The file that a result comes from, when there are several; otherwise None."""
        return self.source if self.arguments.file and len(self.arguments.file) > 1 else None

    def _react(self, detections: list[Detection]) -> None:
        for detection in detections:
            self.n_detections += 1
            self.console.clear()
            show(detection, self.arguments.json, self._file_name)
            self.console.note(f"{detection.word} {detection.confidence:.2f}")
            if self.actions:
                self.actions(detection)
            if self.recorder:
                self.recorder.keep(detection, self.listener.thresholds[detection.word])

    def _reject(self, rejection: Rejection) -> None:
        """Show why nothing was reported, and record near misses."""
        if self.arguments.rejected:
            self.console.clear()
            print(as_json(rejection, self._file_name), flush=True)
        if rejection.was_close:
            self.console.note(f"({rejection.word} {rejection.confidence:.2f}: {rejection.reason})")
            if self.recorder:
                self.recorder.keep(rejection, self.listener.thresholds.get(rejection.word))

    def close(self) -> None:
        """Stop actions that still run, and print a summary."""
        if self.actions:
            self.actions.close()
        self.console.clear()
        if self.n_heard or self.overflows is not None:
            lost = "" if self.overflows is None else f", {self.overflows} overflows"
            self.console.inform(f"heard {self.n_heard / self.rate:.1f} s, {self.n_detections} commands{lost}")


def interrupt(*_: object) -> None:
    """End the program.  Further signals are ignored during shutdown, which takes a few seconds at most."""
    for kind in SIGNALS:
        signal.signal(kind, lambda *_: None)
    raise KeyboardInterrupt


def watch_signals() -> None:
    """End cleanly on each of `SIGNALS`, except those that are ignored from the start (as nohup does)."""
    for kind in SIGNALS:
        if signal.getsignal(kind) != signal.SIG_IGN:
            signal.signal(kind, interrupt)


def watch_pause(pauser: Pauser) -> None:
    """Pause or resume at SIGUSR1."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda *_: pauser.toggle())


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 an error (one line on stderr), 2 wrong usage."""
    settle_streams()
    arguments = parse(argv)
    console = Console(arguments.quiet)
    watch_signals()
    with ExitStack() as at_end:
        return exit_status(
            lambda: run(arguments, console, at_end),
            console.tell,
            "can't read the input or write the results",
            lambda: 0,
        )


def run(arguments: argparse.Namespace, console: Console, at_end: ExitStack) -> int:
    """List the devices, or listen until the input ends.  Returns the exit status."""
    try:
        if arguments.list_devices:
            show_devices(arguments.json, console)
            return 0
        session = at_end.enter_context(closing(Session(arguments, console)))
        watch_pause(session.pauser)
        return session.run()
    except BrokenPipeError:
        drop_stdout()  # the reader has gone: end quietly
        return 0
    except OSError:
        drop_stdout()
        raise


def drop_stdout() -> None:
    """Discard unwritten output, so that Python does not try to write it again at exit."""
    with suppress(OSError, ValueError):  # stdout is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
