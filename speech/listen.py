"""Print spoken commands: `python -m speech.listen`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing

from speech.console import DEMO, Console, Parser, add_decision, add_microphone, add_model, run_program

__all__ = ["DEMO", "main", "parse", "run"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = Parser(
        prog="speech-listen",
        description="Print spoken commands, offline.  Without a source: listen to the default microphone.",
    )
    _add_sources(parser)
    recognition = parser.add_argument_group("recognition")
    add_model(recognition)
    add_decision(recognition)
    recognition.add_argument("--pause", type=float, dest="after_talk", help=argparse.SUPPRESS)  # until version 0.1
    recognition.add_argument(
        "--language-model", metavar="FILE",
        help="a log of commands, for --model connected: one line for each past utterance, as in: left left stop; "
        "where the audio is unclear, frequent sequences are preferred",
    )  # fmt: skip
    recognition.add_argument(
        "--wake", metavar="WORD", help="accept commands only after this word, the model's or your own"
    )
    recognition.add_argument(
        "--wake-for", type=float, metavar="S",
        help="seconds after the wake word in which a command may begin (default: 5.0 s)",
    )  # fmt: skip
    _add_results(parser)
    arguments = parser.parse_args(argv)
    arguments.stdin |= arguments.file == ["-"]
    _check(parser, arguments)
    return arguments


def _add_sources(parser: Parser) -> None:
    group = parser.add_argument_group("input")
    source = group.add_mutually_exclusive_group()
    add_microphone(group, source)
    source.add_argument(
        "--file", nargs="+", metavar="PATH",
        help="audio files, or folders of them, instead of the microphone; - is standard input",
    )  # fmt: skip
    source.add_argument("--stdin", action="store_true", help="audio from a pipe: WAV, FLAC, ..., or raw samples")
    source.add_argument("--demo", action="store_true", help="a recording that ships with the package, in real time")
    source.add_argument("--list-devices", action="store_true", help="show the input devices and exit")
    group.add_argument("--echo", action="store_true", help="take what this machine plays out of the microphone's audio")
    group.add_argument("--wait", action="store_true", help="wait until the microphone is connected")
    group.add_argument("--rate", type=int, metavar="HZ", help="rate of raw samples on --stdin (default: 16000 Hz)")
    group.add_argument(
        "--format", metavar="NAME", help="format of raw samples on --stdin: s16le (default, unless the first bytes are "
        "those of an audio file), s16be, s24le, s32le, f32le, ...",
    )  # fmt: skip
    group.add_argument("--channels", type=int, metavar="N", help="channels of raw samples on --stdin (default: 1)")
    group.add_argument("--realtime", action="store_true", help="read --file at the pace of a microphone")
    group.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds of audio")
    group.add_argument("--no-reconnect", action="store_true", help="end when the microphone is unplugged")
    group.add_argument("--pause-file", metavar="PATH", help="pause while this file exists; SIGUSR1 toggles it too")


def _add_results(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a line")
    group.add_argument(
        "--rejected", action="store_true", help="with --json: also the utterances that were not reported, and why"
    )
    group.add_argument("--actions", metavar="FILE.toml", help="run a program for each word; see speech/actions.py")
    group.add_argument("--record", metavar="DIR", help="keep the audio of each command and of near misses")
    group.add_argument("--quiet", action="store_true", help="only results, errors and warnings")


def _check(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse contradictory options."""
    for option in ("rate", "format", "channels"):
        if getattr(arguments, option) is not None and not arguments.stdin:
            parser.error(f"--{option} belongs to --stdin; files and devices have their own")
    for option in ("no_reconnect", "wait", "channel", "echo"):
        if getattr(arguments, option) and (arguments.file or arguments.stdin or arguments.demo):
            parser.error(f"--{option.replace('_', '-')} belongs to the microphone")
    for option, other in (("realtime", "file"), ("rejected", "json"), ("wake_for", "wake")):
        if getattr(arguments, option) not in (None, False) and not getattr(arguments, other):
            parser.error(f"--{option.replace('_', '-')} belongs to --{other}")
    if arguments.seconds is not None and not arguments.seconds > 0:
        parser.error("--seconds must be positive")
    if arguments.stdin and sys.stdin is not None and sys.stdin.isatty():
        parser.error(
            "--stdin expects audio from a pipe, as in: arecord -t raw -f S16_LE -r 16000 | speech-listen --stdin"
        )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List the devices, or listen until the input ends.  Returns the exit status."""
    from speech.session import ListeningSession, show_devices  # here, so that --version and --help are quick

    if arguments.list_devices:
        show_devices(arguments.json, console)
        return 0
    with closing(ListeningSession(arguments, console)) as session:
        return session.run()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 an error (one line on stderr), 2 wrong usage."""
    return run_program(parse, run, argv, "can't read the input or write the results")


if __name__ == "__main__":
    sys.exit(main())
