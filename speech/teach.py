"""Teach a word of your own: `python -m speech.teach lamp`, and say it five times.

The recordings are kept in the user's data folder.  From then on `speech.listen` recognises the word too.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np

from speech.bundle import DEFAULT_MODEL
from speech.console import Console, Parser, add_microphone, run_program
from speech.errors import AudioError, ConfigError
from speech.listener import Listener
from speech.own.forecast import Forecast, forecast
from speech.own.lesson import Fault, Take, largest_group, takes
from speech.own.similarity import Vectors
from speech.own.words import MOST_RECORDINGS, OwnWords, check_name
from speech.recognizer import Recognizer
from speech.results import Detection, Rejection
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig
from speech.sound import channels
from speech.sound.files import Block, read
from speech.sound.microphone import Microphone
from speech.sound.sources import number_or_name

TIMES = 5
"""Default number of recordings of a word."""
PAD_S = 0.4
"""Silence added before and after a file, as it may begin with the word."""
PATIENCE = 3
"""Faults in a row after which a hint about the microphone is printed."""


class Collector:
    """Gathers recordings of one word and finds the largest group that are alike.

    Args:
        recognizer: its embeddings decide which recordings are alike.
        earlier: recordings that the word already has, each (time,).
    """

    def __init__(self, recognizer: Recognizer, earlier: Sequence[Block] = ()) -> None:
        self._recognizer, self._takes = recognizer, list(earlier)
        self._vectors: list[Vectors] = [self._vector(waveform) for waveform in earlier]
        self._group = largest_group(recognizer.similarity, self._vectors)

    def _vector(self, waveform: Block) -> Vectors:
        return self._recognizer.similarity.project(self._recognizer.embed(waveform)[None])[0]

    def take(self, take: Take) -> Fault | None:
        """Add a usable recording.  Returns why it does not count, or None."""
        if take.fault:
            return take.fault
        self._takes.append(take.waveform)
        self._vectors.append(self._vector(take.waveform))
        self._group = largest_group(self._recognizer.similarity, self._vectors)
        return None if len(self._takes) - 1 in self._group else Fault.UNLIKE

    @property
    def recordings(self) -> list[Block]:
        """The recordings that are alike."""
        return [self._takes[n] for n in self._group]

    @property
    def n_unlike(self) -> int:
        """Number of recordings that sound like another word."""
        return len(self._takes) - len(self._group)


def record(collector: Collector, name: str, n_wanted: int, arguments: argparse.Namespace, console: Console) -> None:
    """Ask for the word at the microphone until there are `n_wanted` recordings of it."""
    channel = channels.parse(arguments.channel or "best")
    with Microphone(number_or_name(arguments.device), tell=console.tell, channel=channel) as microphone:
        console.inform(
            f"recording from {microphone.device.name}\n"
            f'Say "{name}" {n_wanted} times with pauses between, the way you will say it later.  Ctrl-C saves nothing.'
        )
        n_faults = 0

        def with_status() -> Iterator[Block]:
            for block in microphone.blocks(SAMPLE_RATE_HZ):
                console.sign = f'say "{name}"  {len(collector.recordings)} of {n_wanted}'
                console.heard(block)
                yield block

        with closing(takes(with_status(), ListenerConfig())) as found:
            for take in found:
                if take is None:
                    continue
                fault = collector.take(take)
                n_faults = n_faults + 1 if fault else 0
                count = f"{len(collector.recordings)} of {n_wanted}"
                console.inform(f"  {count}" + (f", not this one: {fault}" if fault else ""))
                if n_faults == PATIENCE:
                    console.inform("  (wrong microphone? speech-listen --list-devices shows all, --device N chooses)")
                if len(collector.recordings) >= n_wanted:
                    break
    console.clear()


def audio_files(paths: Sequence[str]) -> list[Path]:
    """The files, and the sorted contents of the folders.  Raises AudioError when there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".json") if path.is_dir() else [path]
        found += [p for p in inside if not p.name.startswith(".")]
    if not found:
        raise AudioError(f"no audio files in {', '.join(paths)}")
    return found


def read_files(collector: Collector, paths: Sequence[str], console: Console) -> None:
    """Add each utterance in the files as a recording, and report those that are left out.

    Raises:
        AudioError: a file can't be read, or there are none.
        ConfigError: more than `MOST_RECORDINGS`.
    """
    silence = np.zeros(round(PAD_S * SAMPLE_RATE_HZ), np.float32)
    for path in audio_files(paths):
        waveform = np.concatenate([silence, read(path, SAMPLE_RATE_HZ), silence])
        found = [take for take in takes([waveform], ListenerConfig()) if take]
        if not found:
            console.tell(f"note: {path}: no speech found")
        for take in found:
            fault = collector.take(take)
            if fault:
                console.tell(f"note: {path} is left out: {fault}")
        if len(collector.recordings) > MOST_RECORDINGS:
            raise ConfigError(f"more than {MOST_RECORDINGS} recordings of one word")


def check_free(name: str, recognizer: Recognizer) -> str:
    """Normalise a name.  Raises ConfigError when it is invalid or the model has this word."""
    name = check_name(name)
    if name in recognizer.info.labels:
        raise ConfigError(f"the model already knows {name!r}: speech-listen --words {name}")
    return name


def teach(arguments: argparse.Namespace, recognizer: Recognizer, own: OwnWords, console: Console) -> int:
    """Gather recordings, learn and save the word, and print its forecast.  Returns the exit status."""
    name = check_free(arguments.word, recognizer)
    earlier = own[name].utterances() if arguments.add and name in own else []
    collector = Collector(recognizer, earlier)
    if arguments.files:
        read_files(collector, arguments.files, console)
    else:
        record(collector, name, len(earlier) + arguments.times, arguments, console)
    recordings = collector.recordings
    if len(recordings) <= (len(earlier) if arguments.add else 0):
        raise AudioError(f"no usable recording of {name!r}; nothing was saved")
    if collector.n_unlike:
        console.tell(
            f"note: {collector.n_unlike} of {len(recordings) + collector.n_unlike} recordings sound like another "
            f"word and are left out: does each of them contain {name!r}?"
        )
    word = own.add(name, recordings, recognizer.similarity, recognizer.embed)
    found = forecast(word, recordings, own, recognizer)
    if arguments.json:
        print(json.dumps(found.as_dict() | {"folder": str(own.folder_of(name))}), flush=True)
    else:
        print(found, flush=True)
        console.inform(f"saved in {own.folder_of(name)}; speech-listen recognises it from now on")
    return 0


def check(arguments: argparse.Namespace, recognizer: Recognizer, own: OwnWords, console: Console) -> None:
    """Listen until Ctrl-C, and print detections and near misses with their confidence."""

    def nearly(rejection: Rejection) -> None:
        console.tell(f"  ({rejection.word} {rejection.confidence:.2f}: {rejection.reason})")

    def show(detection: Detection) -> None:
        console.clear()
        print(f"{detection.word}  {detection.confidence:.2f}", flush=True)

    recognizer.hear_also(own)
    listener = Listener(recognizer, rejected=lambda r: nearly(r) if r.word in own or r.was_close else None)
    channel = channels.parse(arguments.channel or "best")
    with Microphone(number_or_name(arguments.device), tell=console.tell, channel=channel) as microphone:
        words = " and ".join([*own.names, "the model's words"])
        console.inform(f"listening on {microphone.device.name} for {words}; Ctrl-C ends")
        console.sign = "try it"
        with suppress(KeyboardInterrupt):  # that is its end
            for block in microphone.blocks(SAMPLE_RATE_HZ):
                for detection in listener.feed(block):
                    show(detection)
                console.heard(block)
    console.clear()


def show_words(own: OwnWords, recognizer: Recognizer, as_json: bool, console: Console) -> None:
    """Print each word with its number of recordings and its forecast."""
    recognizer.hear_also(own)
    for word in own:
        found: Forecast = forecast(word, word.utterances(), own, recognizer)
        print(json.dumps(found.as_dict()) if as_json else found.line, flush=True)
    if not len(own):
        console.tell(f"no own words in {own.folder}; teach one with: speech-teach WORD")


def export(own: OwnWords, target: Path, console: Console) -> None:
    """Copy the recordings of each word to its own folder in `target`; `--files` reads them back.

    Raises:
        ConfigError: nothing can be written there.
    """
    for word in own:
        folder = target / word.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
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
    parser.add_argument("word", nargs="?", metavar="WORD", help="the word to teach; an existing one is replaced")
    parser.add_argument("--times", type=int, metavar="N", help=f"how often to say it (default: {TIMES})")
    parser.add_argument("--files", nargs="+", metavar="PATH", help="recordings or folders instead of the microphone")
    parser.add_argument("--add", action="store_true", help="keep the word's recordings, and add to them")
    parser.add_argument("--check", action="store_true", help="then listen, to try the words out")
    parser.add_argument("--list", action="store_true", help="show the words and what to expect of each")
    parser.add_argument("--forget", metavar="WORD", help="remove a word and its recordings")
    parser.add_argument("--export", type=Path, metavar="DIR", help="copy the recordings of all words")
    add_microphone(parser)
    parser.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    parser.add_argument("--own", type=Path, metavar="DIR", help="folder of the words (default: the user's data folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object a word")
    parser.add_argument("--quiet", action="store_true", help="only results, errors and warnings")
    arguments = parser.parse_args(argv)
    others = [arguments.list, arguments.forget is not None, arguments.export is not None]
    if sum([*others, arguments.word is not None]) > 1:
        parser.error("WORD, --list, --forget and --export exclude each other")
    if not any([*others, arguments.word, arguments.check]):
        parser.error("which word? as in: speech-teach lamp")
    if not arguments.word and (arguments.times is not None or arguments.files or arguments.add):
        parser.error("--times, --files and --add belong to a WORD")
    if arguments.files and (arguments.times is not None or (arguments.device and not arguments.check)):
        parser.error("--times and --device belong to the microphone")
    arguments.times = TIMES if arguments.times is None else arguments.times
    if not 1 <= arguments.times <= MOST_RECORDINGS:
        parser.error(f"--times must lie in 1..{MOST_RECORDINGS}")
    return arguments


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Do what the command line asks for.  Returns the exit status."""
    own = OwnWords.load(arguments.own)
    if arguments.forget is not None:
        own.forget(check_name(arguments.forget))
        console.inform(f"{arguments.forget!r} and its recordings are removed")
        return 0
    recognizer = Recognizer.load(arguments.model)
    status = 0
    if arguments.export:
        export(own, arguments.export, console)
    elif arguments.list:
        show_words(own, recognizer, arguments.json, console)
    elif arguments.word:
        status = teach(arguments, recognizer, own, console)
    for notice in own.notices:
        console.tell(f"note: {notice}")
    if arguments.check:
        check(arguments, recognizer, own, console)
    return status


main = partial(run_program, parse, run, interrupted="interrupted; nothing was saved")


if __name__ == "__main__":
    sys.exit(main())
