"""Print the commands that are spoken: `python -m speech.listen`."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

import numpy as np

from speech.actions import Actions
from speech.activity import ListenerConfig
from speech.audio import Block, as_mono, check_rate, read_blocks, resample_stream, sample_rate_of
from speech.bundle import DEFAULT_MODEL
from speech.calibrate import load_thresholds
from speech.errors import AudioError, BundleError, ConfigError, SpeechError
from speech.grammar import Grammar
from speech.listener import Listener
from speech.microphone import Microphone, list_devices
from speech.own_words import OwnWords
from speech.recognizer import Recognizer
from speech.recording import Recorder
from speech.results import Detection, Rejection
from speech.status import Console

DEMO = Path(__file__).parent / "demo.flac"
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""They end the program."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="speech-listen",
        description="Print the commands that are spoken, offline.  Without a source: the default microphone.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--device", metavar="N|NAME", help="input device by number or part of its name")
    source.add_argument("--file", nargs="+", metavar="PATH", help="audio files instead of the microphone")
    source.add_argument("--stdin", action="store_true", help="raw signed 16-bit little-endian mono samples")
    source.add_argument("--demo", action="store_true", help="a recording that ships with the package, in real time")
    source.add_argument("--list-devices", action="store_true", help="show the input devices and exit")
    parser.add_argument("--rate", type=int, metavar="HZ", help="sample rate of --stdin (default: 16000 Hz)")
    parser.add_argument("--realtime", action="store_true", help="pace --file like a microphone")
    parser.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    parser.add_argument("--words", metavar="yes,no,...", help="report only these (default: all the model knows)")
    parser.add_argument("--threshold", type=float, metavar="X", help="confidence needed, 0..1 (default: the model's)")
    parser.add_argument("--thresholds", metavar="FILE", help="confidence for each word, as speech.calibrate writes it")
    parser.add_argument(
        "--after-talk", type=float, metavar="S",
        help=f"time after talk in which commands are rejected (default: {ListenerConfig.after_talk_s} s); "
        "0 hears a command right after a sentence, but more in a television",
    )  # fmt: skip
    parser.add_argument("--pause", type=float, dest="after_talk", help=argparse.SUPPRESS)  # its name up to 0.1
    parser.add_argument(
        "--grammar", metavar="TEXT|FILE", help="sentences that may be said, for --model connected: (left|right)+ | stop"
    )
    own = parser.add_mutually_exclusive_group()
    own.add_argument(
        "--own",
        nargs="?",
        const="",
        metavar="DIR",
        help="hear the words of speech-teach (default: if there are any)",
    )
    own.add_argument("--no-own", action="store_true", help="hear only the model's words")
    parser.add_argument("--wake", metavar="WORD", help="hear commands only after this word, the model's or your own")
    parser.add_argument(
        "--wake-for", type=float, metavar="S",
        help=f"time after the wake word in which a command may begin (default: {ListenerConfig.wake_for_s} s)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds of audio")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--rejected", action="store_true", help="with --json: also the utterances that were not reported, and why"
    )
    parser.add_argument("--actions", metavar="FILE.toml", help="what each word sets off; see speech/actions.py")
    parser.add_argument("--record", metavar="DIR", help="keep the audio of each command, and of what nearly was one")
    parser.add_argument("--no-reconnect", action="store_true", help="end when the microphone goes away")
    parser.add_argument("--quiet", action="store_true", help="only results, errors and warnings")
    arguments = parser.parse_args(argv)
    if arguments.rate is not None and not arguments.stdin:
        parser.error("--rate belongs to --stdin; files and devices know their rate")
    if arguments.thresholds and arguments.threshold is not None:
        parser.error("--threshold and --thresholds exclude each other")
    if arguments.realtime and not arguments.file:
        parser.error("--realtime belongs to --file")
    if arguments.no_reconnect and (arguments.file or arguments.stdin or arguments.demo):
        parser.error("--no-reconnect belongs to the microphone")
    if arguments.wake_for is not None and not arguments.wake:
        parser.error("--wake-for belongs to --wake")
    if arguments.rejected and not arguments.json:
        parser.error("--rejected belongs to --json")
    if arguments.seconds is not None and not arguments.seconds > 0:
        parser.error("--seconds must be positive")
    if arguments.stdin and sys.stdin.isatty():
        parser.error(
            "--stdin expects audio from a pipe, as in: arecord -t raw -f S16_LE -r 16000 | speech-listen --stdin"
        )
    return arguments


def stdin_blocks(stream: IO[bytes], rate_hz: int, to_hz: int) -> Iterator[Block]:
    """Raw 16-bit samples -> blocks, each as soon as it has come."""

    def decoded() -> Iterator[Block]:
        odd = b""
        while data := os.read(stream.fileno(), 4096):
            data = odd + data
            whole = len(data) // 2 * 2
            odd = data[whole:]
            yield as_mono(np.frombuffer(data[:whole], "<i2").astype(np.int16))

    return resample_stream(decoded(), check_rate(rate_hz), to_hz)


def paced(blocks: Iterable[Block], rate_hz: int) -> Iterator[Block]:
    """Hand each block out when a microphone would have recorded it."""
    begin, given = time.monotonic(), 0
    for block in blocks:
        given += len(block)
        time.sleep(max(0.0, begin + given / rate_hz - time.monotonic()))
        yield block


def limited(blocks: Iterable[Block], n_samples: int | None) -> Iterator[Block]:
    """The first `n_samples` of a stream; all of it for None."""
    for block in blocks:
        if n_samples is not None:
            block, n_samples = block[:n_samples], n_samples - len(block)
        yield block
        if n_samples is not None and n_samples <= 0:
            return


def until(blocks: Iterable[Block], seconds: float | None) -> Iterator[Block]:
    """End a stream that is only waiting (empty blocks) after that time; None: never."""
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    for block in blocks:
        if not len(block) and time.monotonic() > end:
            return
        yield block


def read_grammar(text_or_path: str, words: Sequence[str]) -> Grammar:
    """A grammar that is spelled out or lies in a file; in a stream its sentences follow one another."""
    path = Path(text_or_path)
    try:
        text = path.read_text("utf-8") if path.is_file() else text_or_path
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return Grammar.parse(text, words).repeated()


def as_json(found: Detection | Rejection, file: str | None) -> str:
    """One JSON object; a rejection is marked as one."""
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(found).items()}
    if isinstance(found, Rejection):
        rounded = {"rejected": True} | rounded
    return json.dumps(rounded | ({"file": file} if file else {}))


def show(detection: Detection, with_json: bool, file: str | None) -> None:
    """One line on stdout, at once."""
    if with_json:
        print(as_json(detection, file), flush=True)
    else:
        where = f"{file}: " if file else ""
        print(f"{where}{detection.start_s:8.2f} s  {detection.word:<8} {detection.confidence:4.2f}", flush=True)


def show_devices(as_json: bool, console: Console) -> None:
    """The input devices, the default one marked."""
    devices = list_devices()
    for device in devices:
        mark = "*" if device.is_default else " "
        if as_json:
            print(json.dumps(asdict(device)))
        else:
            print(f"{mark} {device.number:3}  {device.name}  ({device.channels} channels, {device.sample_rate_hz} Hz)")
    if not devices:
        console.tell("no input device")


def load_recognizer(arguments: argparse.Namespace, console: Console) -> Recognizer:
    """The bundle, with the person's own words if there are any and the bundle can hear them."""
    recognizer = Recognizer.load(arguments.model)
    own = OwnWords.load(arguments.own or None)
    if arguments.no_own or (arguments.own is None and recognizer.info.head == "ctc"):
        return recognizer
    if arguments.own is not None and not len(own) and not own.notices:
        raise ConfigError(f"no own words in {own.folder}; speech-teach WORD begins")
    try:
        recognizer.hear_also(own)
    except BundleError as error:
        if arguments.own is not None:
            raise
        own.notices.append(f"your own words are not heard: {error}")
    for notice in own.notices:
        console.tell(f"note: {notice}")
    if recognizer.own:
        console.inform(f"own words: {', '.join(own.names)}")
    return recognizer


class Session:
    """One run of the program: the listener, what it has heard, and what that sets off."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        recognizer = load_recognizer(arguments, console)
        words = [word.strip() for word in arguments.words.split(",")] if arguments.words is not None else None
        grammar = read_grammar(arguments.grammar, words or recognizer.info.words) if arguments.grammar else None
        threshold: float | dict[str, float] | None = arguments.threshold
        if arguments.thresholds:
            threshold = load_thresholds(arguments.thresholds, recognizer.words)
        config = ListenerConfig()
        if arguments.after_talk is not None:
            config = replace(config, after_talk_s=arguments.after_talk)
        if arguments.wake_for is not None:
            config = replace(config, wake_for_s=arguments.wake_for)
        wake = " ".join(arguments.wake.lower().split()) if arguments.wake else None
        self.listener = Listener(recognizer, words, threshold, config, grammar, self._reject, wake=wake)
        self.arguments, self.console, self.rate = arguments, console, recognizer.info.sample_rate_hz
        self.model = arguments.model or DEFAULT_MODEL.stem
        self.actions = self.recorder = None
        if arguments.actions:
            self.actions = Actions.load(arguments.actions, tuple(self.listener.thresholds), console.tell)
        if arguments.record:
            self.recorder = Recorder(arguments.record, self.rate, {"model": str(self.model)}, console.tell)
        self.n_detections, self.n_heard, self.failed = 0, 0, False
        self.overflows: int | None = None

    def run(self) -> int:
        """Listen to the source until it ends and wait for what it set off; the exit status."""
        arguments = self.arguments
        if arguments.file:
            for path in arguments.file:
                self._file(path)
        elif arguments.demo:
            self.console.inform(f"listening to the demo recording, model {self.model}")
            self._listen(paced(read_blocks(DEMO, self.rate), self.rate), DEMO.name)
        elif arguments.stdin:
            rate = self.rate if arguments.rate is None else arguments.rate
            self.console.inform(f"listening to standard input at {rate} Hz, model {self.model}")
            self._note_rate(rate)
            self._listen(stdin_blocks(sys.stdin.buffer, rate, self.rate), "standard input")
        else:
            self._microphone()
        if self.actions:
            self.actions.finish()
        return int(self.failed)

    def _file(self, path: str) -> None:
        try:
            blocks = read_blocks(path, self.rate)
            self._note_rate(sample_rate_of(path))
            self._listen(paced(blocks, self.rate) if self.arguments.realtime else blocks, path)
        except AudioError as error:
            self.console.tell(f"error: {error}")
            self.failed = True  # the other files are still listened to

    def _note_rate(self, rate_hz: int) -> None:
        if rate_hz < self.rate:
            self.console.inform(
                f"note: recorded at {rate_hz} Hz, this lacks the band above {rate_hz // 2} Hz; expect more misses"
            )

    def _microphone(self) -> None:
        wanted, seconds = self.arguments.device, self.arguments.seconds
        number_or_name = int(wanted) if wanted and wanted.isdigit() else wanted
        with Microphone(number_or_name, not self.arguments.no_reconnect, self.console.tell) as microphone:
            device = microphone.device
            self.console.inform(
                f"listening on {device.name} at {device.sample_rate_hz} Hz, model {self.model}; Ctrl-C ends"
            )
            self._note_rate(device.sample_rate_hz)
            try:
                self._listen(until(microphone.blocks(self.rate), seconds), device.name)
            finally:
                self.overflows = microphone.overflows

    def _listen(self, blocks: Iterable[Block], source: str) -> None:
        self.listener.reset()
        self.source = source
        if self.actions:
            self.actions.reset()
        if self.recorder:
            self.recorder.reset()
            self.recorder.about["source"] = source
        seconds = self.arguments.seconds
        for block in limited(blocks, None if seconds is None else round(seconds * self.rate)):
            self.n_heard += len(block)
            if self.recorder:
                self.recorder.feed(block)
            self._react(self.listener.feed(block))
            self.console.sign = self._sign
            self.console.heard(block)
        self._react(self.listener.flush())

    @property
    def _sign(self) -> str:
        """For the status line: whether commands are heard, where that depends on a wake word."""
        return "" if not self.arguments.wake else "awake " if self.listener.is_awake else "asleep"

    @property
    def _file_name(self) -> str | None:
        """What tells the results of several files apart."""
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
        """Let a person see why nothing happened."""
        if self.arguments.rejected:
            self.console.clear()
            print(as_json(rejection, self._file_name), flush=True)
        if rejection.was_close:
            self.console.note(f"({rejection.word} {rejection.confidence:.2f}: {rejection.reason})")
            if self.recorder:
                self.recorder.keep(rejection, self.listener.thresholds.get(rejection.word))

    def end(self) -> None:
        """End what still runs, and sum up."""
        if self.actions:
            self.actions.close()
        self.console.clear()
        if self.n_heard or self.overflows is not None:
            lost = "" if self.overflows is None else f", {self.overflows} overflows"
            self.console.inform(f"heard {self.n_heard / self.rate:.1f} s, {self.n_detections} commands{lost}")


def interrupt(*_: object) -> None:
    """Ends the program once; a second signal does not disturb the end, which takes a few seconds at most."""
    for kind in SIGNALS:
        signal.signal(kind, lambda *_: None)
    raise KeyboardInterrupt


def watch_signals() -> None:
    """What ends the program ends it cleanly, except what whoever started it wants ignored (as nohup does)."""
    for kind in SIGNALS:
        if signal.getsignal(kind) != signal.SIG_IGN:
            signal.signal(kind, interrupt)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 fine, 1 what went wrong in one line on stderr, 2 wrong usage."""
    arguments = parse(argv)
    console = Console(arguments.quiet)
    watch_signals()
    with ExitStack() as at_end:
        try:
            if arguments.list_devices:
                show_devices(arguments.json, console)
                return 0
            session = Session(arguments, console)
            at_end.callback(session.end)
            return session.run()
        except KeyboardInterrupt:
            return 0
        except BrokenPipeError:
            drop_stdout()  # nobody reads: end quietly
            return 0
        except ConfigError as error:
            console.tell(f"error: {error}")
            return 2
        except SpeechError as error:
            console.tell(f"error: {error}")
            return 1
        except OSError as error:
            drop_stdout()
            console.tell(f"error: can't read the input or write the results: {error.strerror or error}")
            return 1


def drop_stdout() -> None:
    """Let what is still to be written vanish, so that Python does not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
