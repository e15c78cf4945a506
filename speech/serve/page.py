"""A web page and a WebSocket for programs, both with a Listener for each client; docs/serve.md describes the messages.

The server is websockets, one small package without dependencies (aiohttp has nine, 12 MB; starlette with uvicorn needs
websockets too).  That is enough, as only one file is served besides the socket.
"""

import asyncio
import hashlib
import json
import logging
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from speech import __version__
from speech.errors import BundleError, ConfigError, SpeechError
from speech.results import Detection, Examined, as_dict
from speech.serve.lessons import ClientLesson, can_learn, forget
from speech.serve.messages import Message, parse_message
from speech.serve.pictures import picture_of
from speech.serve.security import TOKEN_PREFIX, Access, Limits
from speech.serve.streams import ClientError, ClientStream, ListenerFactory, PcmDecoder
from speech.trace import Tracer

PROTOCOL = Subprotocol("speech.v1")
BROKEN_RULE = 1008
"""WebSocket close code: the client broke a rule."""
Event = dict[str, Any]

logger = logging.getLogger(__name__)


class Client:
    """One WebSocket: messages with audio in, events out."""

    def __init__(self, socket: ServerConnection, server: "PageServer") -> None:
        self._socket, self._server = socket, server
        self._stream: ClientStream | ClientLesson | None = None
        self._start = Message("start")

    async def run(self) -> None:
        """Serve the client until it leaves, breaks a rule or is too slow."""
        try:
            await self._send(self._server.ready)
            await self._converse()
        except ConnectionClosed:
            pass
        except TimeoutError:
            logger.info("client dropped: it does not read its events")
            self._socket.transport.abort()
        except SpeechError as error:
            logger.info("client dropped: %s", error)
            with suppress(ConnectionClosed, TimeoutError):
                await self._send({"type": "error", "message": str(error)})
                await self._socket.close(BROKEN_RULE, "see the error")

    async def _converse(self) -> None:
        limits = self._server.limits
        while True:
            try:
                async with asyncio.timeout(limits.idle_s):
                    message = await self._socket.recv()
            except TimeoutError:
                if self._stream:
                    raise ClientError(f"no audio for {limits.idle_s:g} s") from None
                async with asyncio.timeout(limits.send_s):  # a page that is open, but not listening
                    await (await self._socket.ping())
            else:
                if isinstance(message, bytes):
                    await self._hear(message)
                else:
                    await self._handle(parse_message(message))

    async def _handle(self, message: Message) -> None:
        try:
            if message.type == "stop":
                await self._finish()
            elif message.type == "start":
                decoder, make = PcmDecoder(message.rate_hz, channels=message.channels), self._server.factory.listener
                choices = (message.words, message.thresholds, message.after_talk_s, message.wake)
                stream = await asyncio.to_thread(ClientStream, decoder, lambda found: make(found, *choices))
                self._stream, self._start = stream, message
                await self._send({"type": "started", "thresholds": stream.thresholds})
            elif not self._server.can_learn:
                raise ConfigError("words can't be taught here")
            elif message.type == "teach":
                decoder = PcmDecoder(message.rate_hz, channels=message.channels)
                recognizer = self._server.factory.recognizer
                lesson = await asyncio.to_thread(ClientLesson, recognizer, message.word, message.times, decoder)
                self._stream = lesson
                await self._send({"type": "teaching", "word": lesson.word, "wanted": lesson.wanted})
            else:
                await asyncio.to_thread(forget, self._server.factory.recognizer, message.word)
                await self._send({"type": "forgotten", "word": message.word} | self._server.offered)
                self._server.words_changed(self._socket)
        except (ConfigError, BundleError) as error:  # refused settings: the previous stream goes on
            await self._send({"type": "error", "message": str(error)})

    async def _hear(self, data: bytes) -> None:
        stream = self._stream
        if isinstance(stream, ClientLesson):
            await self._record(stream, data)
        elif stream:
            utterances = await asyncio.to_thread(stream.feed, data)
            if self._start.levels:
                await self._send_level(stream.decoder, stream.is_hearing)
            await self._tell(utterances)
        else:
            raise ClientError('audio before {"type": "start", "rate_hz": ...}')

    async def _record(self, lesson: ClientLesson, data: bytes) -> None:
        if lesson.is_over:
            return
        recorded = await asyncio.to_thread(lesson.feed, data)
        await self._send_level(lesson.decoder, False)
        for one in recorded:
            await self._send({"type": "recorded"} | asdict(one))
        if not lesson.is_over:
            return
        try:
            found = await asyncio.to_thread(lesson.learn)
        except ConfigError as error:
            await self._send({"type": "error", "message": str(error)})
            return
        await self._send({"type": "taught", "forecast": found.as_dict()} | self._server.offered)
        self._server.words_changed(self._socket)

    async def _finish(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            raise ClientError('{"type": "stop"} without a stream')
        if isinstance(stream, ClientStream):
            await self._tell(await asyncio.to_thread(stream.finish))
        await self._send({"type": "stopped", "heard_s": round(stream.decoder.heard_s, 3)})

    async def _tell(self, utterances: Sequence[Examined]) -> None:
        """Send the decisions at once, then the pictures, which take longer."""
        for utterance in utterances:
            for detection in utterance.detections:
                self._server.publish(detection)
                await self._send({"type": "detection"} | as_dict(detection))
            if utterance.rejection:
                await self._send({"type": "rejection"} | as_dict(utterance.rejection))
            if self._start.pictures:
                picture = await asyncio.to_thread(picture_of, utterance, self._server.tracer)
                await self._send({"type": "utterance"} | picture)

    async def _send_level(self, decoder: PcmDecoder, is_speaking: bool) -> None:
        at_s, dbfs = round(decoder.heard_s, 3), round(decoder.level_dbfs, 1)
        await self._send({"type": "level", "at_s": at_s, "dbfs": dbfs, "speaking": is_speaking})

    async def _send(self, event: Event) -> None:
        async with asyncio.timeout(self._server.limits.send_s):
            await self._socket.send(json.dumps(event))


@dataclass
class PageServer:
    """Serves the page and its socket, as a context manager.

    Raises:
        OSError: on entering, when the address is in use or not this machine's.
    """

    factory: ListenerFactory
    access: Access
    limits: Limits = field(default_factory=Limits)
    publish: Callable[[Detection], None] = lambda _: None
    """Called with each detection."""
    announce: Callable[[Sequence[str]], None] = lambda _: None
    """Called with the words offered whenever they have changed."""
    model: str = ""
    """Name of the model, for the page."""
    tracer: Tracer | None = None
    """Computes the network's activations for the page's pictures; None leaves them out."""
    certificate: ssl.SSLContext | None = None
    """For https; without it browsers give no microphone to a page from another machine."""

    def __post_init__(self) -> None:
        self.connections: set[ServerConnection] = set()
        self._clients: set[ServerConnection] = set()
        self._page, self._page_headers = load_page()

    @property
    def ready(self) -> Event:
        """The first message to each client."""
        info = self.factory.recognizer.info
        return {
            "type": "ready",
            "version": __version__,
            "model": self.model,
            "head": info.head,
            "labels": list(info.classes),
            "after_talk_s": self.factory.config.after_talk_s,
            "wake": self.factory.wake,
            "max_message_bytes": self.limits.max_message_bytes,
        } | self.offered

    @property
    def url(self) -> str:
        return self.access.url

    @property
    def can_learn(self) -> bool:
        """Whether clients may teach words."""
        return self.factory.chosen is None and can_learn(self.factory.recognizer)

    @property
    def offered(self) -> Event:
        """The words offered, and which of them were taught; `own` is None if words can't be taught."""
        own = self.factory.recognizer.own
        return {
            "thresholds": self.factory.thresholds(),
            "own": list(own) if own is not None and self.can_learn else None,
        }

    def words_changed(self, by: ServerConnection) -> None:
        """Tell everybody but the client that changed the words, which has its own answer."""
        self.announce(self.factory.words)
        broadcast(self._clients - {by}, json.dumps({"type": "offered"} | self.offered))

    async def __aenter__(self) -> "PageServer":
        limits = self.limits
        self._server: Server = await serve(
            self._serve,
            self.access.host,
            self.access.port,
            process_request=self._refuse_or_answer,
            select_subprotocol=lambda _, offered: PROTOCOL if PROTOCOL in offered else None,
            compression=None,
            server_header=None,
            open_timeout=limits.handshake_s,
            close_timeout=limits.send_s,
            max_size=limits.max_message_bytes,
            max_queue=4,
            ping_interval=None,  # pongs would queue after waiting audio; `idle_s` finds lost clients
            create_connection=self._connection_class(),
            ssl=self.certificate,
        )
        self.access = replace(self.access, port=self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self.connections - self._clients:
            connection.transport.abort()  # no handshake yet, so no closing handshake
        await self._server.wait_closed()

    def _connection_class(self) -> type[ServerConnection]:
        """A connection class that counts its instances and aborts at once when there are too many."""
        open_ones, most = self.connections, self.limits.max_connections

        class Counted(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                open_ones.add(self)
                if len(open_ones) > most:
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                open_ones.discard(self)
                super().connection_lost(exc)

        return Counted

    async def _serve(self, connection: ServerConnection) -> None:
        self._clients.add(connection)
        try:
            await Client(connection, self).run()
        finally:
            self._clients.discard(connection)

    def _refuse_or_answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """None if the request may open a WebSocket; otherwise the page, or the reason for a refusal."""
        access, origins = self.access, request.headers.get_all("Origin")
        scheme, host = access.asked(connection.remote_address[0], request.headers.get_all)
        if not access.knows(host):
            return plain(HTTPStatus.MISDIRECTED_REQUEST, "wrong Host: --name gives this server another name")
        path = request.path.partition("?")[0]
        if access.base_path and path == access.base_path:
            return plain(HTTPStatus.TEMPORARY_REDIRECT, "the page is below", Location=f"{path}/")
        path = path.removeprefix(access.base_path)
        if path == "/":
            return Response(HTTPStatus.OK, "OK", Headers(self._page_headers), self._page)
        if path != "/socket":
            return plain(HTTPStatus.NOT_FOUND, "not found: only / and /socket are served")
        if origins and [origin.lower() for origin in origins] != [f"{scheme}://{host}"]:
            return plain(HTTPStatus.FORBIDDEN, "wrong Origin: only this server's own page may open the socket; a proxy "
                         "must be named with --trusted-proxy, and forward the host and the scheme")  # fmt: skip
        if not access.accepts(shown_tokens(request.headers)):
            return plain(HTTPStatus.UNAUTHORIZED, "a token is needed: it is in the address that the server printed")
        if len(self._clients) >= self.limits.max_clients:
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients")
        return None


def shown_tokens(headers: Headers) -> list[str]:
    """The tokens in `Authorization: Bearer ...` and among the subprotocols."""
    bearer = [value.removeprefix("Bearer ") for value in headers.get_all("Authorization") if value[:7] == "Bearer "]
    offered = [one.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for one in value.split(",")]
    return bearer + [one.removeprefix(TOKEN_PREFIX) for one in offered if one.startswith(TOKEN_PREFIX)]


def plain(status: HTTPStatus, text: str, **more: str) -> Response:
    """An answer of one line, with more headers."""
    body = f"{text}\n".encode()
    headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
    return Response(status, status.phrase, Headers(headers | more), body)


def load_page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that allow only its own script to run and only this server to be contacted."""
    page = files("speech.serve").joinpath("page.html").read_bytes()
    hashes = {}
    for tag in ("script", "style"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        hashes[tag] = " ".join(f"'sha256-{b64encode(hashlib.sha256(one).digest()).decode()}'" for one in content)
    policy = (
        f"default-src 'none'; script-src {hashes['script']} blob:; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": str(len(page)),
        "Content-Security-Policy": policy,
        "Permissions-Policy": "microphone=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Connection": "close",
    }
