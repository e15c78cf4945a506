"""The command line of `speech.listen`."""

import argparse
import sys

from speech import __version__
from speech.bundle import DEFAULT_MODEL
from speech.segment import ListenerConfig
from speech.sound.containers import ENCODINGS


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="speech-listen",
        description="Print spoken commands, offline.  Without a source: listen to the default microphone.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_sources(parser)
    _add_recognition(parser)
    _add_results(parser)
    arguments = parser.parse_args(argv)
    for name, value in vars(arguments).items():
        if value == []:  # what argparse makes of --name=--
            parser.error(f"--{name.replace('_', '-')} needs a value")
    arguments.stdin |= arguments.file == ["-"]
    _check(parser, arguments)
    return arguments


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--device", metavar="N|NAME", help="input device by number or part of its name")
    source.add_argument(
        "--file", nargs="+", metavar="PATH", help="audio files instead of the microphone; - is standard input"
    )
    source.add_argument("--stdin", action="store_true", help="audio from a pipe: WAV, FLAC, ..., or raw samples")
    source.add_argument("--demo", action="store_true", help="a recording that ships with the package, in real time")
    source.add_argument("--list-devices", action="store_true", help="show the input devices and exit")
    group.add_argument(
        "--channel", metavar="left|right|N|mix", help="channel of a device with several (default: the best)"
    )
    group.add_argument("--wait", action="store_true", help="wait until the microphone is connected")
    group.add_argument("--rate", type=int, metavar="HZ", help="rate of raw samples on --stdin (default: 16000 Hz)")
    group.add_argument(
        "--format", choices=list(ENCODINGS), metavar="NAME", help="format of raw samples on --stdin (default: s16le, "
        f"unless the first bytes are those of an audio file): {', '.join(ENCODINGS)}",
    )  # fmt: skip
    group.add_argument("--channels", type=int, metavar="N", help="channels of raw samples on --stdin (default: 1)")
    group.add_argument("--realtime", action="store_true", help="read --file at the pace of a microphone")
    group.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds of audio")
    group.add_argument("--no-reconnect", action="store_true", help="end when the microphone is unplugged")
    group.add_argument("--pause-file", metavar="PATH", help="pause while this file exists; SIGUSR1 toggles it too")


def _add_recognition(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recognition")
    group.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    group.add_argument("--words", metavar="yes,no,...", help="report only these words (default: all known words)")
    group.add_argument("--threshold", type=float, metavar="X", help="confidence needed, 0..1 (default: the model's)")
    group.add_argument("--thresholds", metavar="FILE", help="confidence for each word, as speech.calibrate writes it")
    group.add_argument(
        "--after-talk", type=float, metavar="S",
        help=f"seconds after longer speech in which commands are rejected (default: {ListenerConfig.after_talk_s} s); "
        "0 accepts a command right after a sentence, but gives more false alarms from a television",
    )  # fmt: skip
    group.add_argument("--pause", type=float, dest="after_talk", help=argparse.SUPPRESS)  # the name until version 0.1
    group.add_argument(
        "--grammar", metavar="TEXT|FILE", help="sentences that may be said, for --model connected: (left|right)+ | stop"
    )
    group.add_argument(
        "--language-model", metavar="FILE",
        help="a log of commands, for --model connected: one line for each past utterance, as in: left left stop; "
        "where the audio is unclear, frequent sequences are preferred",
    )  # fmt: skip
    own = group.add_mutually_exclusive_group()
    own.add_argument(
        "--own", nargs="?", const="", metavar="DIR", help="recognise the words of speech-teach (default: if any)"
    )
    own.add_argument("--no-own", action="store_true", help="recognise only the model's words")
    group.add_argument("--wake", metavar="WORD", help="accept commands only after this word, the model's or your own")
    group.add_argument(
        "--wake-for", type=float, metavar="S",
        help=f"seconds after the wake word in which a command may begin (default: {ListenerConfig.wake_for_s} s)",
    )  # fmt: skip


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a line")
    group.add_argument(
        "--rejected", action="store_true", help="with --json: also the utterances that were not reported, and why"
    )
    group.add_argument("--actions", metavar="FILE.toml", help="run a program for each word; see speech/actions.py")
    group.add_argument("--record", metavar="DIR", help="keep the audio of each command and of near misses")
    group.add_argument("--quiet", action="store_true", help="only results, errors and warnings")


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse contradictory options."""
    for option in ("rate", "format", "channels"):
        if getattr(arguments, option) is not None and not arguments.stdin:
            parser.error(f"--{option} belongs to --stdin; files and devices have their own")
    for option in ("no_reconnect", "wait", "channel"):
        if getattr(arguments, option) and (arguments.file or arguments.stdin or arguments.demo):
            parser.error(f"--{option.replace('_', '-')} belongs to the microphone")
    for option, other in (("realtime", "file"), ("rejected", "json"), ("wake_for", "wake")):
        if getattr(arguments, option) not in (None, False) and not getattr(arguments, other):
            parser.error(f"--{option.replace('_', '-')} belongs to --{other}")
    if arguments.thresholds and arguments.threshold is not None:
        parser.error("--threshold and --thresholds exclude each other")
    if arguments.seconds is not None and not arguments.seconds > 0:
        parser.error("--seconds must be positive")
    if arguments.stdin and sys.stdin is not None and sys.stdin.isatty():
        parser.error(
            "--stdin expects audio from a pipe, as in: arecord -t raw -f S16_LE -r 16000 | speech-listen --stdin"
        )
