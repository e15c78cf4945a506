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

from recipes.data.corpus import PARTS, Corpus, index_others, index_words, read_commands
from recipes.metrics import write_json
from recipes.protocols.connected import Connected, draw_connected, evaluate_connected
from recipes.protocols.live import ALARMS, THRESHOLDS, Live, draw_live, evaluate_live
from recipes.protocols.own import Own, draw_own, evaluate_own
from recipes.protocols.scenes import SCENES
from recipes.protocols.speed import evaluate_speed
from recipes.protocols.words import Evaluation, draw_confusion, draw_reliability, evaluate_twelve, evaluate_words
from recipes.report import Result, write_report
from recipes.vocabulary import add_words_option
from speech.bundle import DEFAULT_MODEL
from speech.errors import ConfigError, exit_status
from speech.recognizer import Recognizer
from speech.segment import ListenerConfig

PROTOCOLS = ("twelve", "words", "live", "connected", "own", "speed")


def draw(result: Result, protocol: str, folder: Path) -> list[Path]:
    """Draw the pictures of one protocol; return their paths."""
    if isinstance(result, Evaluation):
        targets = [folder / f"confusion_{protocol}.png", folder / f"reliability_{protocol}.png"]
        draw_confusion(result, targets[0])
        draw_reliability(result.judged, result.title, targets[1])
    elif isinstance(result, Live):
        targets = [folder / "reliability_live.png"]
        judged = [one for condition in result.outcomes[0].conditions for one in condition.judged]
        draw_reliability(judged, f"detections among commands, all scenes, {result.part}", targets[0])
        if result.outcomes[0].curve:
            targets.append(folder / "live.png")
            draw_live(result, targets[1])
    elif isinstance(result, Connected):
        targets = [folder / "connected.png"]
        draw_connected(result, targets[0])
    elif isinstance(result, Own):
        targets = [folder / "own.png"]
        draw_own(result, targets[0])
    else:
        targets = []
    return targets


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (default: the shipped one)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.add_argument(
        "--data.cache", dest="cache", type=Path, metavar="DIR", help="decoded audio (default: DIR/cache)"
    )
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=["twelve", "words", "speed"])
    parser.add_argument("--part", choices=PARTS, default="testing", help="for words, live, connected, own")
    parser.add_argument(
        "--curve", nargs="*", type=float, default=THRESHOLDS, metavar="X", help="thresholds at which live is repeated"
    )
    parser.add_argument(
        "--after-talk",
        nargs="+",
        type=float,
        default=[ListenerConfig.after_talk_s],
        metavar="S",
        help="for live: seconds after talk in which commands are rejected; several values give one table each",
    )
    parser.add_argument(
        "--scenes",
        nargs="+",
        choices=[*(scene.name for scene in SCENES), *ALARMS],
        metavar="NAME",
        help=f"only these, for live: {', '.join(repr(scene.name) for scene in SCENES)}; and audio without commands: "
        f"{', '.join(map(repr, ALARMS))}",
    )
    add_words_option(parser)
    parser.add_argument("--commands", type=int, default=300, metavar="N", help="per scene of live (default: 300)")
    parser.add_argument("--mixtures", type=int, default=200, help="mixtures for connected (default: 200)")
    parser.add_argument("--held-out", type=float, default=0.12, help="as data.held_out in training (default: 0.12)")
    parser.add_argument("--mistakes", action="store_true", help="list every clip that was classified wrongly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write PNGs")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write DIR/index.html with all results")
    arguments = parser.parse_args(argv)
    return arguments


def evaluate(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the chosen protocols, print each result, return all figures."""
    recognizer, commands = Recognizer.load(arguments.model), read_commands(arguments.words)
    if arguments.commands < len(commands):
        raise ConfigError(f"--commands must be at least {len(commands)}, one of each")
    figures: dict[str, object] = {"model": str(arguments.model)}

    @cache
    def corpus() -> Corpus:
        recordings = index_words(arguments.root, arguments.held_out) + index_others(arguments.root)
        if "own" not in arguments.protocol:  # this protocol teaches words from all parts
            recordings = [r for r in recordings if r.part == arguments.part or r.source == "rooms"]
        return Corpus(recordings, arguments.cache or arguments.root / "cache")

    run: dict[str, Callable[[], Result]] = {
        "twelve": lambda: evaluate_twelve(recognizer, arguments.root, commands),
        "words": lambda: evaluate_words(recognizer, corpus(), arguments.part, commands),
        "live": lambda: evaluate_live(
            recognizer,
            corpus(),
            arguments.part,
            commands,
            arguments.commands,
            arguments.curve,
            arguments.after_talk,
            arguments.scenes,
        ),
        "connected": lambda: evaluate_connected(recognizer, corpus(), arguments.part, arguments.mixtures, commands),
        "own": lambda: evaluate_own(recognizer, corpus(), arguments.part, commands),
        "speed": lambda: evaluate_speed(arguments.model),
    }
    folder = arguments.pictures or arguments.report
    results, pictures = [], {}
    for number, protocol in enumerate(arguments.protocol):
        result = run[protocol]()
        results.append(result)
        print(result, end="\n\n", flush=True)
        if folder:
            pictures[number] = draw(result, protocol, folder)
        if isinstance(result, Evaluation) and arguments.mistakes:
            print("\n".join(map(str, result.mistakes)), end="\n\n")
        figures[protocol] = result.as_dict()
    if arguments.report:
        print(write_report(arguments.report, arguments.model, recognizer.info, results, pictures))
    return figures


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def run() -> None:
        figures = evaluate(arguments)
        if arguments.json:
            write_json(arguments.json, figures)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
