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
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from speech.bundle import DEFAULT_MODEL, MODELS
from speech.console import (
    SIGNALS,
    Console,
    Parser,
    add_decision,
    add_model,
    chosen_grammar,
    chosen_thresholds,
    chosen_words,
    listener_config,
    make_recognizer,
    run_program,
)
from speech.errors import BundleError, ConfigError
from speech.recognizer import Recognizer

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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = Parser(prog="speech-serve", description="Serve speech commands to other programs, offline.")
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
    add_model(command)
    add_decision(command)
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
    arguments: argparse.Namespace,
    recognizer: Recognizer,
    console: Console,
    with_grammar: bool,
    others: Sequence[str] = (),
) -> "Hearing":
    """What a bundle offers to clients, with the settings of the command line.

    Args:
        with_grammar: whether `--grammar` applies to this bundle.
        others: words of another bundle of this server; `--words` and `--thresholds` may name them too.
    Raises:
        ConfigError: settings out of range, or a word that no bundle knows.
    """
    from speech.serve.streams import Hearing, Settings

    known = tuple(recognizer.thresholds)
    named = chosen_words(arguments, (*known, *others))
    strange = set(named or ()) - {*known, *others}
    if strange:
        unknown = ", ".join(map(repr, sorted(strange)))
        raise ConfigError(f"the model does not know {unknown}; it knows {', '.join(known)}")
    chosen = tuple(word for word in named or () if word in known) or None
    threshold = chosen_thresholds(arguments, recognizer, console, others)
    grammar = chosen_grammar(arguments.grammar, chosen or known) if with_grammar else None
    hearing = Hearing(recognizer, chosen, threshold, listener_config(arguments), grammar)
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
    hearing = hearing_from(arguments, make_recognizer(arguments, console), console, with_grammar=True)
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

    wake = hearing_from(arguments, make_recognizer(arguments, console), console, with_grammar=False)
    speech = hearing_from(arguments, Recognizer.load(arguments.speech_model), console, True, others=wake.words)
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


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Serve until a signal arrives.  Returns the exit status."""
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.CRITICAL, format="%(message)s")
    if not all(map(find_spec, PACKAGES)):
        console.tell(f"error: {EXTRA}")
        return 1
    asyncio.run(serve(arguments, console))
    return 0


main = partial(run_program, parse, run, os_errors="can't serve there")


if __name__ == "__main__":
    sys.exit(main())
