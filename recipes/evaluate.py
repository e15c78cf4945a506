"""Measure a bundle: `python -m recipes.evaluate --data.root DIR` prints tables; --json and --pictures write files.

Protocols:

    twelve     the official 12-class test archive
    words      every word of a part of Speech Commands
    live       commands in long audio, through the live path
    connected  sequences of commands, for a bundle with a CTC head
    own        words outside the vocabulary, taught from some recordings
    speed      processor time and start-up time
"""

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from recipes.data.recordings import PARTS, read_commands
from recipes.metrics import write_json
from recipes.protocols.against_pocketsphinx import pocketsphinx_readers
from recipes.protocols.connected import Connected, evaluate_connected, plot_connected
from recipes.protocols.live import ALARMS, THRESHOLDS, Live, evaluate_live, plot_live
from recipes.protocols.own import Own, evaluate_own, plot_own
from recipes.protocols.scenes import SCENES, Recordings
from recipes.protocols.speed import evaluate_speed
from recipes.protocols.words import Evaluation, evaluate_twelve, evaluate_words, plot_confusion, plot_reliability
from recipes.report import Result, write_report
from recipes.vocabulary import add_words_option
from speech.bundle import DEFAULT_MODEL
from speech.errors import ConfigError, exit_status
from speech.recognizer import Recognizer
from speech.segment import ListenerConfig

PROTOCOLS = ("twelve", "words", "live", "connected", "own", "speed")


def plot(result: Result, protocol: str, folder: Path) -> list[Path]:
    """Draw the pictures of one protocol; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    reliability, picture = folder / f"reliability_{protocol}.png", folder / f"{protocol}.png"
    if isinstance(result, Evaluation):
        plot_confusion(result, picture)
        plot_reliability(result.judged, result.title, reliability)
        return [picture, reliability]
    if isinstance(result, Live):
        judged = [one for condition in result.settings[0].conditions for one in condition.judged]
        plot_reliability(judged, f"detections among commands, all scenes, {result.part}", reliability)
        if not result.settings[0].curve:
            return [reliability]
        plot_live(result, picture)
        return [reliability, picture]
    if isinstance(result, Connected):
        plot_connected(result, picture)
    elif isinstance(result, Own):
        plot_own(result, picture)
    else:
        return []
    return [picture]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (default: the shipped one)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=["twelve", "words", "speed"])
    parser.add_argument("--part", choices=PARTS, default="testing", help="for words, live, connected, own")
    parser.add_argument(
        "--curve", nargs="*", type=float, default=THRESHOLDS, metavar="X", help="thresholds at which live is repeated"
    )
    parser.add_argument(
        "--after-talk", nargs="+", type=float, default=[ListenerConfig.after_talk_s], metavar="S",
        help="for live: seconds after talk in which commands are rejected; several values give one table each",
    )  # fmt: skip
    parser.add_argument(
        "--scenes", nargs="+", choices=[*(scene.name for scene in SCENES), *ALARMS], metavar="NAME",
        help=f"only these, for live: {', '.join(repr(scene.name) for scene in SCENES)}; and audio without commands: "
        f"{', '.join(map(repr, ALARMS))}",
    )  # fmt: skip
    add_words_option(parser)
    parser.add_argument("--commands", type=int, default=300, metavar="N", help="per scene of live (default: 300)")
    parser.add_argument("--mixtures", type=int, default=200, help="mixtures for connected (default: 200)")
    parser.add_argument(
        "--language-model", type=Path, metavar="FILE", help="for connected: a log, one line for each past utterance; "
        "every fourth line is said, the others are counted, and the gain of the language model is measured",
    )  # fmt: skip
    parser.add_argument(
        "--pocketsphinx", action="store_true", help="for connected: measure pocketsphinx on the same mixtures"
    )
    parser.add_argument("--mistakes", action="store_true", help="list every clip that was classified wrongly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write PNGs")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write DIR/index.html with all results")
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> None:
    """Run the chosen protocols; print and write each result as soon as it is measured."""
    recognizer, commands = Recognizer.load(arguments.model), read_commands(arguments.words)
    if arguments.commands < len(commands) or arguments.mixtures < 1:
        raise ConfigError(f"--commands must be at least {len(commands)}, one of each, and --mixtures at least 1")
    others = pocketsphinx_readers(commands) if arguments.pocketsphinx else {}
    part = arguments.part

    @cache
    def recordings() -> Recordings:
        # Own words are taught from recordings of all parts.
        return Recordings.load(arguments.root, None if "own" in arguments.protocol else part)

    run: dict[str, Callable[[], Result]] = {
        "twelve": lambda: evaluate_twelve(recognizer, arguments.root, commands),
        "words": lambda: evaluate_words(recognizer, recordings(), part, commands),
        "live": lambda: evaluate_live(
            recognizer, recordings(), part, commands, arguments.commands, arguments.curve, arguments.after_talk,
            arguments.scenes,
        ),
        "connected": lambda: evaluate_connected(
            recognizer, recordings(), part, arguments.mixtures, commands, arguments.language_model, others
        ),
        "own": lambda: evaluate_own(recognizer, recordings(), part),
        "speed": lambda: evaluate_speed(arguments.model),
    }  # fmt: skip
    folder = arguments.pictures or arguments.report
    figures: dict[str, object] = {"model": str(arguments.model)}
    measured: list[tuple[Result, list[Path]]] = []
    for protocol in arguments.protocol:
        figures[protocol] = result = run[protocol]()
        print(result, end="\n\n", flush=True)
        if isinstance(result, Evaluation) and arguments.mistakes:
            print("\n".join(map(str, result.mistakes)), end="\n\n")
        if arguments.json:
            write_json(arguments.json, figures)
        measured.append((result, plot(result, protocol, folder) if folder else []))
        if arguments.report:
            page = write_report(arguments.report, arguments.model, recognizer.info, measured)
    if arguments.report:
        print(page)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return exit_status(lambda: evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
