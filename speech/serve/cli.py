"""Serve speech commands to other programs: `python -m speech.serve page` or `wyoming`."""

import argparse
import asyncio
import logging
import secrets
import signal
import ssl
import sys
import webbrowser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from speech.bundle import bundle_path
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
    model_name,
    run_program,
)
from speech.errors import BundleError, ConfigError
from speech.settings import match_name

if TYPE_CHECKING:
    from speech.serve.page import PageServer
    from speech.serve.streams import ListenerFactory
    from speech.serve.wyoming import WyomingServer

EXTRA = "speech-serve needs more packages; in the folder of this project: pip install '.[serve]'"
PACKAGES = ("wyoming", "websockets", "paho", "zeroconf", "onnx")
MICROPHONE = (
    "note: browsers give the microphone only to https pages (--certificate, or a proxy: docs/serve.md) and to pages "
    "from their own machine"
)
MAX_THREADS = 4
"""Threads that recognise; onnxruntime releases the GIL while it works.  A job is one message, and each client has at
most one job at a time, so a client waits for at most one message of each other client."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = Parser(prog="speech-serve", description="Serve speech commands to other programs, offline.")
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page", help="a web page, and a WebSocket for programs")
    add = page.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="(default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8765, help="(default: %(default)s)")
    add("--open", action="store_true", help="open the page in the browser")
    add("--certificate", type=Path, metavar="PEM", help="serve https, with --key")
    add("--key", type=Path, metavar="PEM", help="private key of --certificate")
    add("--name", action="append", default=[], metavar="HOST", help="another name of this server, such as "
        "speech.example.org; may be repeated (default: the machine's and the certificate's)")  # fmt: skip
    add("--base-path", default="", metavar="PATH", help="what a proxy puts before the paths, such as /speech")
    add("--trusted-proxy", action="append", default=[], metavar="ADDRESS", help="a proxy whose X-Forwarded-Host and "
        "X-Forwarded-Proto are believed; may be repeated")  # fmt: skip
    wyoming = commands.add_parser("wyoming", help="the protocol of Home Assistant's voice satellites")
    add = wyoming.add_argument
    add("--uri", default="tcp://127.0.0.1:10400", help="tcp://HOST:PORT or unix:///PATH (default: %(default)s)")
    add("--allow", action="append", default=[], metavar="HOST", help="other machines that may connect, such as "
        "homeassistant.local, 192.168.1.7 or 192.168.1.0/24; may be repeated")  # fmt: skip
    add("--no-zeroconf", action="store_true", help="do not announce the server in the network; one that only this "
        "machine can reach is never announced")  # fmt: skip
    add("--speech-model", default="connected", metavar="PATH", help="bundle for text (default: %(default)s)")
    for command in (page, wyoming):
        add_common(command)
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    return arguments


def add_common(command: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    add_model(command)
    add_decision(command)
    add = command.add_argument
    add("--wake", metavar="WORD", help="accept commands only after this word; clients of the page may choose another")
    add("--wake-for", type=float, metavar="S", help="seconds after it in which a command may begin (default: 5.0 s)")
    add("--max-clients", type=int, default=32, metavar="N", help="most clients at once (default: 32)")
    add("--mqtt", metavar="HOST[:PORT]", help="publish detections to this broker, as speech/WORD")
    add("--mqtt-prefix", default="speech", metavar="TOPIC", help="first part of the topics (default: speech)")
    add("--mqtt-user", metavar="NAME")
    add("--mqtt-password-file", type=Path, metavar="FILE", help="its first line is the password")
    add("--mqtt-tls", action="store_true", help="encrypt, and check the broker's certificate")
    add("--verbose", action="store_true", help="also report why clients are refused or dropped")
    add("--quiet", action="store_true", help="only errors and warnings")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse contradictory options."""
    page = arguments.command == "page"
    if page:
        arguments.base_path = arguments.base_path.rstrip("/")
    for is_wrong, message in (
        (arguments.wake_for is not None and not arguments.wake, "--wake-for belongs to --wake"),
        (arguments.max_clients < 1, "--max-clients must be positive"),
        (page and bool(arguments.certificate) != bool(arguments.key), "--certificate and --key belong together"),
        (page and not 0 <= arguments.port < 65536, "--port must lie in 0..65535"),
        (page and arguments.base_path[:1] not in ("", "/"), "--base-path must begin with /"),
        (not arguments.mqtt and (arguments.mqtt_user or arguments.mqtt_password_file or arguments.mqtt_tls),
         "--mqtt-user, --mqtt-password-file and --mqtt-tls belong to --mqtt"),
    ):  # fmt: skip
        if is_wrong:
            parser.error(message)


def make_factory(
    arguments: argparse.Namespace, console: Console, has_grammar: bool, others: Sequence[str] = ()
) -> "ListenerFactory":
    """What a bundle offers to clients, with the settings of the command line.

    Args:
        has_grammar: whether `--grammar` is meant for this bundle.
        others: words of another bundle of this server; `--words` may name them too.
    Raises:
        ConfigError: settings out of range, or a word that no bundle knows.
    """
    from speech.serve.streams import ListenerFactory

    recognizer = make_recognizer(arguments, console)
    known = recognizer.words
    named = chosen_words(arguments, (*known, *others))
    if strange := set(named or ()) - {*known, *others}:
        unknown = ", ".join(map(repr, sorted(strange)))
        raise ConfigError(f"the model does not know {unknown}; it knows {', '.join(known)}")
    chosen = tuple(word for word in named or () if word in known) or None
    threshold = chosen_thresholds(arguments, recognizer, console)
    grammar = chosen_grammar(arguments.grammar, chosen or known) if has_grammar else None
    wake = match_name(arguments.wake, known) if arguments.wake else None
    factory = ListenerFactory(recognizer, chosen, threshold, listener_config(arguments), grammar, wake)
    factory.listener(lambda _: None)  # raises now if the settings are wrong
    return factory


def page_server(arguments: argparse.Namespace, console: Console) -> "PageServer":
    """A `PageServer` for the command line.  Raises ConfigError for a certificate or setting that can't be used."""
    from speech.serve.page import PageServer
    from speech.serve.security import Access, Machines, is_loopback, names_of
    from speech.trace import Tracer

    certificate, names = None, tuple(arguments.name)
    if arguments.certificate:
        certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            certificate.load_cert_chain(arguments.certificate, arguments.key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{arguments.certificate} and {arguments.key} can't be used: {error}") from error
        names += names_of(arguments.certificate)
    proxies = Machines(arguments.trusted_proxy, "--trusted-proxy")
    factory = make_factory(arguments, console, has_grammar=True)
    is_private = is_loopback(arguments.host) and not arguments.name and not proxies  # a proxy forwards everybody
    token = None if is_private else secrets.token_urlsafe(16)
    access = Access(
        arguments.host, arguments.port, token, certificate is not None, names, arguments.base_path, proxies
    )  # fmt: skip
    tracer = None
    with suppress(BundleError):  # other graphs are served without pictures of the network
        tracer = Tracer(bundle_path(arguments.model))
    if not is_loopback(arguments.host) and not certificate and not proxies:
        console.tell(MICROPHONE)
    return PageServer(factory, access, model=model_name(arguments), tracer=tracer, certificate=certificate)


def wyoming_server(arguments: argparse.Namespace, console: Console) -> "WyomingServer":
    """A `WyomingServer` for the command line.  Raises ConfigError for an address that must not be served."""
    from speech.serve.security import Machines
    from speech.serve.wyoming import WyomingServer

    wake = make_factory(arguments, console, has_grammar=False)
    own = {"model": arguments.speech_model, "own": None, "no_own": True, "wake": None, "thresholds": None}
    for_text = argparse.Namespace(**vars(arguments) | own)
    speech = make_factory(for_text, console, has_grammar=True, others=wake.words)
    return WyomingServer(arguments.uri, wake, speech, allowed=Machines(arguments.allow))


async def serve(arguments: argparse.Namespace, console: Console) -> None:
    """Serve until a signal arrives."""
    from speech.serve.mqtt import Broker, Publisher
    from speech.serve.security import Limits, is_loopback
    from speech.serve.wyoming import WyomingServer, announced

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "recognise"))
    watch_signals(loop, stop)
    async with AsyncExitStack() as opened:
        server = (page_server if arguments.command == "page" else wyoming_server)(arguments, console)
        server.limits = Limits(arguments.max_clients)
        if arguments.mqtt:
            broker = Broker(
                arguments.mqtt, arguments.mqtt_prefix, arguments.mqtt_user, arguments.mqtt_password_file,
                arguments.mqtt_tls,
            )  # fmt: skip
            factories = [server.wake, server.speech] if isinstance(server, WyomingServer) else [server.factory]
            words = dict.fromkeys(word for factory in factories for word in factory.words)
            publisher = opened.enter_context(Publisher(broker, arguments.command, list(words), console.inform))
            server.publish = publisher
            if not isinstance(server, WyomingServer):
                server.announce = publisher.announce
        machines = server.allowed if isinstance(server, WyomingServer) else server.access.proxies
        await machines.look_up(console.tell)
        opened.callback(asyncio.create_task(machines.keep_looking_up(console.tell)).cancel)
        await opened.enter_async_context(server)
        if isinstance(server, WyomingServer) and server.host_and_port and not arguments.no_zeroconf:
            host, port = server.host_and_port
            try:
                if not is_loopback(host):
                    await opened.enter_async_context(announced(host, port))
            except OSError as error:
                console.tell(f"note: the server can't be announced in the network: {error}")
        console.tell(f"serving at {server.url}; Ctrl-C ends")
        if arguments.command == "page" and arguments.open:
            await asyncio.to_thread(webbrowser.open, server.url)
        await stop.wait()


def watch_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Let the first signal end the program in order, and a second one at once."""
    watched = [kind for kind in SIGNALS if signal.getsignal(kind) != signal.SIG_IGN]  # ignored from the start by nohup

    def end() -> None:
        stop.set()
        for kind in watched:
            loop.remove_signal_handler(kind)
            signal.signal(kind, signal.SIG_DFL)

    with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt
        for kind in watched:
            loop.add_signal_handler(kind, end)


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
