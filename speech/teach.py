"""Teach a word of your own, or a word of the model in your voice: `python -m speech.teach lamp`, and say it five times.

The recordings are kept in the user's data folder.  `speech.listen` recognises the word from then on, also one that is
already running.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from speech.bundle import DEFAULT_MODEL
from speech.console import Console, Parser, add_microphone, counted, open_microphone, run_program
from speech.errors import AudioError, ConfigError
from speech.listener import Listener
from speech.own.forecast import forecast
from speech.own.lesson import TakeCutter, TeachingSession, takes_of_file
from speech.own.words import MOST_RECORDINGS, OwnWords, check_name
from speech.recognizer import Recognizer
from speech.results import Rejection
from speech.segment import SAMPLE_RATE_HZ
from speech.sound.files import Block, audio_files, read

TIMES = 5
"""Default number of recordings of a word."""
PATIENCE = 3
"""Faults in a row after which a hint about the microphone is printed."""


def record(session: TeachingSession, arguments: argparse.Namespace, console: Console) -> None:
    """Ask for the word at the microphone until there are as many recordings of it as were asked for."""
    with open_microphone(arguments, console) as microphone:
        console.inform(
            f"recording from {microphone.device.name}\n"
            f'Say "{session.name}" {arguments.times} times with pauses between, the way you will say it later.  '
            "Ctrl-C saves nothing."
        )
        n_faults, cutter = 0, TakeCutter()
        for block in microphone.blocks(SAMPLE_RATE_HZ):
            console.sign = f'say "{session.name}"  {session.count}'
            console.heard(block)
            for take in cutter.push(block):
                fault = session.take(take)
                n_faults = n_faults + 1 if fault else 0
                console.inform(f"  {session.count}" + (f", not this one: {fault}" if fault else ""))
                if n_faults == PATIENCE:
                    console.inform("  (wrong microphone? speech-listen --list-devices shows all, --device N chooses)")
                if session.is_over:
                    return


def utterances_in(paths: Iterable[str], console: Console) -> Iterator[tuple[Path, Block]]:
    """The usable utterances in files and folders, each with its path; says what is left out.

    Raises:
        AudioError: a file can't be read, or there are no audio files.
    """
    for path in audio_files(paths):
        found = takes_of_file(read(path, SAMPLE_RATE_HZ))
        if not found:
            console.tell(f"note: {path}: no speech found")
        for take in found:
            if take.fault:
                console.tell(f"note: {path} is left out: {take.fault}")
            else:
                yield path, take.waveform


def ask(session: TeachingSession, folder: str, console: Console) -> None:
    """Play what `--record` kept, near misses first, and ask what it was."""
    found = session.by_doubt([waveform for _, waveform in utterances_in([folder], console)])
    console.inform(
        f"{counted(len(found), 'utterance')}, doubtful first; y: it is {session.name!r}; n: it is not, and must not "
        "be taken for it; Enter: something else, leave it out; q: enough"
    )
    can_play = True
    for number, waveform in enumerate(found, 1):
        can_play = can_play and play(waveform, console)
        print(f"{number} of {len(found)}: was this {session.name!r}? (y/n/other) ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline() if sys.stdin else ""
        match answer.strip().lower()[:1] if answer else "q":
            case "q":
                break
            case "y":
                session.add(waveform)
            case "n":
                session.refuse(waveform)
    console.inform(f"{counted(len(session.recordings), 'recording')}, {len(session.refused)} not to be taken for it")


def play(waveform: Block, console: Console) -> bool:
    """Play it and wait for its end; False, after one line, if that is not possible."""
    try:
        import sounddevice

        sounddevice.play(waveform, SAMPLE_RATE_HZ)
        sounddevice.wait()
    except Exception as error:  # without PortAudio OSError, without a device an error of its own
        console.tell(f"note: nothing can be played here: {error}")
        return False
    return True


def teach(arguments: argparse.Namespace, recognizer: Recognizer, own: OwnWords, console: Console) -> None:
    """Gather recordings, save the word, and print its forecast.

    Raises:
        AudioError: there is no usable recording.
    """
    n_wanted = 0 if arguments.files or arguments.folder else arguments.times
    keep = arguments.add or arguments.folder is not None
    recognizer.hear_also(own)
    session = TeachingSession(recognizer, arguments.word, n_wanted, own if keep else None)
    if arguments.folder is not None:
        ask(session, arguments.folder, console)
    elif arguments.files:
        for path, waveform in utterances_in(arguments.files, console):
            if fault := session.add(waveform):
                console.tell(f"note: {path} is left out: {fault}")
    else:
        record(session, arguments, console)
        console.clear()
    if not session.has_news:
        raise AudioError(f"no usable recording of {session.name!r}; nothing was saved")
    if session.odd_ones:
        console.tell(f"note: {session.odd_ones}")
    word = session.save(own)
    recognizer.hear_also(own)
    expected = forecast(word, own, recognizer)
    if arguments.json:
        print(json.dumps(expected.as_dict() | {"folder": str(own.folder_of(word.name))}), flush=True)
    else:
        print(expected, flush=True)
        console.inform(f"saved in {own.folder_of(word.name)}; speech-listen recognises it from now on")


def check(arguments: argparse.Namespace, recognizer: Recognizer, own: OwnWords, console: Console) -> None:
    """Listen until Ctrl-C, and print detections and near misses with their confidence."""

    def nearly(rejection: Rejection) -> None:
        if rejection.word in own or rejection.was_close:
            console.tell(f"  ({rejection.word} {rejection.confidence:.2f}: {rejection.reason})")

    recognizer.hear_also(own)
    listener = Listener(recognizer, on_rejection=nearly)
    with open_microphone(arguments, console) as microphone:
        words = " and ".join([*own, "the model's words"])
        console.inform(f"listening on {microphone.device.name} for {words}; Ctrl-C ends")
        console.sign = "try it"
        with suppress(KeyboardInterrupt):  # that is its end
            for block in microphone.blocks(SAMPLE_RATE_HZ):
                for detection in listener.feed(block):
                    console.clear()
                    print(f"{detection.word}  {detection.confidence:.2f}", flush=True)
                console.heard(block)
    console.clear()


def show_words(own: OwnWords, recognizer: Recognizer, as_json: bool, console: Console) -> None:
    """Print each word with its number of recordings and its forecast."""
    recognizer.hear_also(own)
    for word in own.values():
        expected = forecast(word, own, recognizer)
        print(json.dumps(expected.as_dict()) if as_json else expected.line, flush=True)
    if not own:
        console.tell(f"no own words in {own.folder}; teach one with: speech-teach WORD")


def export(own: OwnWords, target: Path, console: Console) -> None:
    """Copy the recordings of each word to its own folder in `target`; `--files` reads them back.

    Raises:
        ConfigError: nothing can be written there.
    """
    for word in own.values():
        folder = target / word.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.wav"):
                if path.stem.isdecimal():  # exported earlier
                    path.unlink()
            for path in word.recordings:
                (folder / path.name).write_bytes(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"can't copy {word.name!r} to {folder}: {error.strerror}") from error
    console.inform(f"{len(own)} words copied to {target}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = Parser(
        prog="speech-teach", description="Teach a word of your own, from a few recordings of it, in seconds."
    )
    what, source = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    what.add_argument("word", nargs="?", metavar="WORD", help="the word to teach; an own word is replaced")
    what.add_argument("--list", action="store_true", help="show the words and what to expect of each")
    what.add_argument("--forget", metavar="WORD", help="remove a word and its recordings")
    what.add_argument("--export", type=Path, metavar="DIR", help="copy the recordings of all words")
    source.add_argument("--times", type=int, metavar="N", help=f"how often to say it (default: {TIMES})")
    source.add_argument("--files", nargs="+", metavar="PATH", help="recordings or folders instead of the microphone")
    source.add_argument(
        "--from", dest="folder", metavar="DIR", help="what speech-listen --record kept: play it, and ask what it was"
    )
    parser.add_argument("--add", action="store_true", help="keep the word's recordings, and add to them")
    parser.add_argument("--check", action="store_true", help="then listen, to try the words out")
    add_microphone(parser)
    parser.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    parser.add_argument("--own", type=Path, metavar="DIR", help="folder of the words (default: the user's data folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object a word")
    parser.add_argument("--quiet", action="store_true", help="only results, errors and warnings")
    arguments = parser.parse_args(argv)
    from_files = arguments.files or arguments.folder is not None
    if arguments.word is None:
        if arguments.times is not None or from_files or arguments.add:
            parser.error("--times, --files, --from and --add belong to a WORD")
        if not (arguments.list or arguments.forget is not None or arguments.export or arguments.check):
            parser.error("which word? as in: speech-teach lamp")
    if from_files and (arguments.device or arguments.channel) and not arguments.check:
        parser.error("--device and --channel belong to the microphone")
    arguments.times = TIMES if arguments.times is None else arguments.times
    if not 1 <= arguments.times <= MOST_RECORDINGS:
        parser.error(f"--times must lie in 1..{MOST_RECORDINGS}")
    return arguments


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks for."""
    own = OwnWords.load(arguments.own)
    for notice in own.notices:
        console.tell(f"note: {notice}")
    own.notices.clear()
    if arguments.forget is not None:
        own.forget(check_name(arguments.forget))
        console.inform(f"{arguments.forget!r} and its recordings are removed")
        return
    if arguments.export:
        export(own, arguments.export, console)
        return
    recognizer = Recognizer.load(arguments.model)
    if arguments.list:
        show_words(own, recognizer, arguments.json, console)
    elif arguments.word is not None:
        teach(arguments, recognizer, own, console)
    for notice in own.notices:
        console.tell(f"note: {notice}")
    if arguments.check:
        check(arguments, recognizer, own, console)


main = partial(run_program, parse, run, interrupted="interrupted; nothing was saved")


if __name__ == "__main__":
    sys.exit(main())
