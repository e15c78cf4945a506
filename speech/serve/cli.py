"""Serve speech commands to other programs: `python -m speech.serve page` or `wyoming`."""

import argparse
import asyncio
import logging
import signal
import ssl
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from speech import __version__
from speech.bundle import DEFAULT_MODEL, MODELS
from speech.calibrate import load_thresholds
from speech.errors import BundleError, ConfigError, exit_status
from speech.listen import SIGNALS, read_grammar
from speech.recognizer import Recognizer, load_with_own
from speech.segment import ListenerConfig
from speech.status import Console, settle_streams

if TYPE_CHECKING:
    from speech.serve.mqtt import Publish
    from speech.serve.page import PageServer
    from speech.serve.security import Limits
    from speech.serve.streams import Hearing, Workers
    from speech.serve.wyoming import WyomingServer

EXTRA = "python -m speech.serve needs more packages: pip install 'speech-commands-offline[serve]'"
PACKAGES = ("wyoming", "websockets", "aiomqtt", "onnx")
PAGE_PORT = 8765
WYOMING_URI = "tcp://127.0.0.1:10400"
SPEECH_MODEL = "connected"
"""Default bundle of Wyoming's speech to text."""


def _recognizer(arguments: argparse.Namespace, console: Console) -> Recognizer:
    """The bundle, with the user's own words."""
    return load_with_own(arguments.model, arguments.own, arguments.no_own, console.inform, console.tell)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog="speech-serve", description="Serve speech commands to other programs, offline."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page", help="a web page, and a WebSocket for programs")
    page.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="(default: 127.0.0.1, this machine only)")
    page.add_argument("--port", type=int, default=PAGE_PORT, help=f"(default: {PAGE_PORT})")
    page.add_argument("--open", action="store_true", help="open the page in the browser")
    page.add_argument("--certificate", type=Path, metavar="PEM", help="serve https, with --key")
    page.add_argument("--key", type=Path, metavar="PEM", help="private key of --certificate")
    wyoming = commands.add_parser("wyoming", help="the protocol of Home Assistant's voice satellites")
    wyoming.add_argument("--uri", default=WYOMING_URI, help=f"tcp://HOST:PORT or unix:///PATH (default: {WYOMING_URI})")
    wyoming.add_argument("--allow", action="append", default=[], metavar="ADDRESS", help="other machines that may "
                         "connect, such as 192.168.1.7 or 192.168.1.0/24; may be repeated")  # fmt: skip
    wyoming.add_argument("--speech-model", default=SPEECH_MODEL, metavar="PATH", help="bundle for speech to text "
                         f"(default: {SPEECH_MODEL})")  # fmt: skip
    for command in (page, wyoming):
        add_common(command)
    arguments = parser.parse_args(argv)
    if arguments.thresholds and arguments.threshold is not None:
        parser.error("--threshold and --thresholds exclude each other")
    if not arguments.max_clients > 0:
        parser.error("--max-clients must be positive")
    if arguments.command == "page":
        if (arguments.certificate is None) != (arguments.key is None):
            parser.error("--certificate and --key belong together")
        if not 0 <= arguments.port < 65536:
            parser.error("--port must lie in 0..65535")
    if not arguments.mqtt and (arguments.mqtt_user or arguments.mqtt_password_file or arguments.mqtt_tls):
        parser.error("--mqtt-user, --mqtt-password-file and --mqtt-tls belong to --mqtt")
    return arguments


def add_common(command: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    command.add_argument("--model", metavar="PATH", help=f"bundle to use (default: the shipped {DEFAULT_MODEL.name})")
    command.add_argument("--words", metavar="yes,no,...", help="offer only these words (default: all known words)")
    command.add_argument("--threshold", type=float, metavar="X", help="confidence needed, 0..1 (default: the model's)")
    command.add_argument("--thresholds", metavar="FILE", help="confidence for each word, as speech.calibrate writes it")
    command.add_argument("--after-talk", type=float, metavar="S", help="seconds after longer speech in which "
                         f"commands are rejected (default: {ListenerConfig.after_talk_s} s)")  # fmt: skip
    own = command.add_mutually_exclusive_group()
    own.add_argument(
        "--own", nargs="?", const="", metavar="DIR", help="recognise the words of speech-teach (default: if any)"
    )
    own.add_argument("--no-own", action="store_true", help="recognise only the model's words; clients can't teach")
    command.add_argument("--grammar", metavar="TEXT|FILE", help="sentences that may be said, for bundles of sequences")
    command.add_argument("--max-clients", type=int, default=32, metavar="N", help="most clients at once (default: 32)")
    command.add_argument("--mqtt", metavar="HOST[:PORT]", help="publish detections to this broker, as speech/WORD")
    command.add_argument(
        "--mqtt-prefix", default="speech", metavar="TOPIC", help="first part of the topics (default: speech)"
    )
    command.add_argument("--mqtt-user", metavar="NAME")
    command.add_argument("--mqtt-password-file", type=Path, metavar="FILE", help="its first line is the password")
    command.add_argument("--mqtt-tls", action="store_true", help="encrypt, and check the broker's certificate")
    command.add_argument("--verbose", action="store_true", help="also report why clients are refused or dropped")
    command.add_argument("--quiet", action="store_true", help="only errors and warnings")


def hearing_from(
    arguments: argparse.Namespace, recognizer: Recognizer, with_grammar: bool, others: Sequence[str] = ()
) -> "Hearing":
    """What a bundle offers to clients, with the settings of the command line.

    Args:
        with_grammar: whether `--grammar` applies to this bundle.
        others: words of another bundle of this server; `--words` may name them too.
    Raises:
        ConfigError: settings out of range, or a word that no bundle knows.
    """
    from speech.serve.streams import Hearing, Settings

    known = tuple(recognizer.thresholds)
    named = None if arguments.words is None else [word.strip() for word in arguments.words.split(",")]
    strange = set(named or ()) - {*known, *others}
    if strange:
        unknown = ", ".join(map(repr, sorted(strange)))
        raise ConfigError(f"the model does not know {unknown}; it knows {', '.join(known)}")
    chosen = tuple(word for word in named or () if word in known) or None
    threshold = arguments.threshold
    if arguments.thresholds:
        given = load_thresholds(arguments.thresholds, (*known, *others))
        threshold = {word: value for word, value in given.items() if word in known}
    config = ListenerConfig()
    if arguments.after_talk is not None:
        config = replace(config, after_talk_s=arguments.after_talk)
    grammar = read_grammar(arguments.grammar, chosen or known) if arguments.grammar and with_grammar else None
    hearing = Hearing(recognizer, chosen, threshold, config, grammar)
    hearing.listener(Settings(), lambda _: None)  # raises now if the settings are wrong
    return hearing


def page_server(
    arguments: argparse.Namespace, limits: "Limits", workers: "Workers", publish: "Publish", console: Console
) -> "PageServer":
    """A `PageServer` for the command line.  Raises ConfigError for a certificate or setting that can't be used."""
    from speech.serve.page import PageServer
    from speech.serve.security import Access, is_loopback, new_token
    from speech.trace import Tracer

    certificate = None
    if arguments.certificate:
        certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            certificate.load_cert_chain(arguments.certificate, arguments.key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{arguments.certificate} and {arguments.key} can't be used: {error}") from error
    hearing = hearing_from(arguments, _recognizer(arguments, console), with_grammar=True)
    token = None if is_loopback(arguments.host) else new_token()
    access = Access(arguments.host, arguments.port, token, certificate is not None)
    tracer = None
    with suppress(BundleError):  # other graphs are served without pictures of the network
        tracer = Tracer(bundle_path(arguments.model))
    model = Path(arguments.model or DEFAULT_MODEL).stem
    return PageServer(hearing, access, limits, workers, publish, model, tracer, certificate)


def bundle_path(model: str | None) -> Path:
    """The file that `Recognizer.load` opens."""
    path = DEFAULT_MODEL if model is None else Path(model)
    return path if path.is_file() else MODELS / f"{path}.onnx"


def wyoming_server(
    arguments: argparse.Namespace, limits: "Limits", workers: "Workers", publish: "Publish", console: Console
) -> "WyomingServer":
    """A `WyomingServer` for the command line.  Raises ConfigError for an address that must not be served."""
    from speech.serve.security import parse_networks
    from speech.serve.wyoming import House, WyomingServer

    wake = hearing_from(arguments, _recognizer(arguments, console), with_grammar=False)
    speech = hearing_from(arguments, Recognizer.load(arguments.speech_model), True, others=wake.words)
    # A stream for text holds speech to this program only: no command in it must be rejected as talk to somebody else.
    speech = replace(speech, config=replace(speech.config, after_talk_s=0.0))
    return WyomingServer(arguments.uri, House(wake, speech, limits, parse_networks(arguments.allow), workers, publish))


async def serve(arguments: argparse.Namespace, console: Console) -> None:
    """Serve until a signal arrives."""
    from speech.serve.mqtt import Broker, Publisher
    from speech.serve.security import Limits
    from speech.serve.streams import Workers

    stop = asyncio.Event()
    for kind in SIGNALS:
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
            if signal.getsignal(kind) != signal.SIG_IGN:  # ignored from the start, as by nohup
                asyncio.get_running_loop().add_signal_handler(kind, stop.set)
    limits = Limits(arguments.max_clients, 3 * arguments.max_clients)
    async with AsyncExitStack() as opened:
        workers = Workers()
        opened.callback(workers.close)
        publish: Publish = lambda _: None  # noqa: E731
        if arguments.mqtt:
            broker = Broker(
                arguments.mqtt, arguments.mqtt_prefix, arguments.mqtt_user, arguments.mqtt_password_file,
                arguments.mqtt_tls,
            )  # fmt: skip
            publish = await opened.enter_async_context(Publisher(broker, console.inform))
        if arguments.command == "page":
            url = (await opened.enter_async_context(page_server(arguments, limits, workers, publish, console))).url
        else:
            url = (await opened.enter_async_context(wyoming_server(arguments, limits, workers, publish, console))).url
        console.tell(f"serving at {url}; Ctrl-C ends")
        if arguments.command == "page" and arguments.open:
            await asyncio.to_thread(webbrowser.open, url)
        await stop.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 an error (one line on stderr), 2 wrong usage."""
    settle_streams()
    arguments = parse(argv)
    console = Console(arguments.quiet)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.CRITICAL, format="%(message)s")
    if not all(map(find_spec, PACKAGES)):
        console.tell(f"error: {EXTRA}")
        return 1
    return exit_status(lambda: asyncio.run(serve(arguments, console)), console.tell, "can't serve there", lambda: 0)


if __name__ == "__main__":
    sys.exit(main())
