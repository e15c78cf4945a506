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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
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
from speech.results import Examined, as_dict
from speech.serve.lessons import Lesson, can_learn, forget
from speech.serve.messages import ClientError, Start, Teach, parse_message
from speech.serve.mqtt import Publish
from speech.serve.pictures import picture_of
from speech.serve.security import TOKEN_PREFIX, Access, Limits
from speech.serve.streams import Hearing, Settings, Stream, Workers
from speech.trace import Tracer

SOCKET_PATH = "/socket"
PROTOCOL = Subprotocol("speech.v1")
MOST_AT_ONCE = 32
"""Most messages of one client that wait to be processed."""
MOST_BYTES = 1 << 16
"""Waiting audio messages are joined up to about this size; 0.7 s of audio at 48 kHz."""
BROKEN_RULE = 1008
"""WebSocket close code: the client broke a rule."""

logger = logging.getLogger(__name__)


class Client:
    """One WebSocket: messages with audio in, events out, until it leaves, breaks a rule or is too slow."""

    def __init__(self, socket: ServerConnection, server: "PageServer") -> None:
        self._socket, self._server = socket, server
        self._stream: Stream | None = None
        self._start: Start | None = None
        self._lesson: Lesson | None = None
        self._messages: asyncio.Queue[str | bytes | Exception] = asyncio.Queue(MOST_AT_ONCE)
        self._held: str | Exception | None = None

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
        reading = asyncio.create_task(self._read())
        try:
            while True:
                message = await self._next()
                if isinstance(message, bytes):
                    await self._hear(message)
                else:
                    await self._handle(message)
        finally:
            reading.cancel()

    async def _read(self) -> None:
        """Queue the client's messages, then the exception that ends them; a full queue makes the client wait."""
        limits = self._server.limits
        try:
            while True:
                try:
                    async with asyncio.timeout(limits.idle_s):
                        message = await self._socket.recv()
                except TimeoutError:
                    if self._stream or self._lesson:
                        raise
                    async with asyncio.timeout(limits.send_s):  # a page that is open, but not listening
                        await (await self._socket.ping())
                else:
                    await self._messages.put(message)
        except TimeoutError:
            await self._messages.put(ClientError(f"no audio for {limits.idle_s:g} s"))
        except ConnectionClosed as closed:
            await self._messages.put(closed)

    async def _next(self) -> str | bytes:
        """The next message; waiting audio messages are joined, which costs less than one by one."""
        message = await self._messages.get() if self._held is None else self._held
        self._held = None
        if isinstance(message, Exception):
            raise message
        if isinstance(message, str):
            return message
        while len(message) < MOST_BYTES and not self._messages.empty():
            following = self._messages.get_nowait()
            if not isinstance(following, bytes):
                self._held = following
                break
            message += following
        return message

    async def _handle(self, text: str) -> None:
        message = parse_message(text)
        if message is None:
            await self._finish()
            return
        try:
            if isinstance(message, Start):
                await self._begin(message)
            elif not self._server.can_learn:
                raise ConfigError("words can't be taught here")
            elif isinstance(message, Teach):
                await self._teach(message)
            else:
                await self._server.workers.run(forget, self._server.hearing.recognizer, message.word)
                await self._send({"type": "forgotten", "word": message.word} | self._server.offered)
                self._server.tell_others(self._socket)
        except (ConfigError, BundleError) as error:  # refused settings: the previous stream goes on
            await self._send({"type": "error", "message": str(error)})

    async def _begin(self, start: Start) -> None:
        self._stream = await self._server.workers.run(Stream, self._server.hearing, start.pcm, start.settings)
        self._start, self._lesson = start, None
        await self._send({"type": "started", "thresholds": self._stream.thresholds})

    async def _teach(self, teach: Teach) -> None:
        recognizer = self._server.hearing.recognizer
        self._lesson = await self._server.workers.run(Lesson, recognizer, teach.word, teach.times, teach.pcm)
        self._start = self._stream = None
        await self._send({"type": "teaching", "word": self._lesson.word, "wanted": self._lesson.wanted})

    async def _hear(self, data: bytes) -> None:
        if self._lesson:
            await self._record(self._lesson, data)
            return
        stream, start = self._stream, self._start
        if stream is None or start is None:
            raise ClientError('audio before {"type": "start", "rate_hz": ...}')
        utterances = await self._server.workers.run(stream.feed, data)
        if start.levels:
            await self._send(level(stream.heard_s, stream.level_dbfs, stream.is_hearing))
        await self._tell(utterances, start.pictures)

    async def _record(self, lesson: Lesson, data: bytes) -> None:
        if lesson.is_over:
            return
        recorded = await self._server.workers.run(lesson.feed, data)
        await self._send(level(lesson.heard_s, lesson.level_dbfs, False))
        for one in recorded:
            await self._send({"type": "recorded"} | asdict(one))
        if not lesson.is_over:
            return
        try:
            found = await self._server.workers.run(lesson.learn)
        except ConfigError as error:
            await self._send({"type": "error", "message": str(error)})
            return
        await self._send({"type": "taught", "forecast": found.as_dict()} | self._server.offered)
        self._server.tell_others(self._socket)

    async def _finish(self) -> None:
        stream, start, lesson = self._stream, self._start, self._lesson
        self._stream = self._lesson = None
        if stream and start:
            await self._tell(await self._server.workers.run(stream.finish), start.pictures)
        elif lesson is None:
            raise ClientError('{"type": "stop"} without a stream')
        heard = stream or lesson
        assert heard
        await self._send({"type": "stopped", "heard_s": round(heard.heard_s, 3)})

    async def _tell(self, utterances: Sequence[Examined], pictures: bool) -> None:
        """Send the decisions at once, then the pictures, which take longer."""
        for utterance in utterances:
            for detection in utterance.detections:
                self._server.publish(detection)
                await self._send({"type": "detection"} | as_dict(detection))
            if utterance.rejection:
                await self._send({"type": "rejection"} | as_dict(utterance.rejection))
            if pictures:
                picture = await self._server.workers.run(picture_of, utterance, self._server.tracer)
                await self._send({"type": "utterance"} | picture)

    async def _send(self, event: Mapping[str, Any]) -> None:
        async with asyncio.timeout(self._server.limits.send_s):
            await self._socket.send(json.dumps(event))


class PageServer:
    """Serves the page and its socket, as a context manager.

    Args:
        hearing: what is offered to clients.
        access: address, port and token.
        limits: what clients may cost.
        workers: threads that recognise.
        publish: called with each detection.
        model: name of the model, for the page.
        tracer: computes the network's activations for the page's pictures; None leaves them out.
        certificate: for https; without it browsers give no microphone to a page from another machine.
    Raises:
        OSError: on entering, when the address is in use or not this machine's.
    """

    def __init__(
        self,
        hearing: Hearing,
        access: Access,
        limits: Limits,
        workers: Workers,
        publish: Publish,
        model: str = "",
        tracer: Tracer | None = None,
        certificate: ssl.SSLContext | None = None,
    ) -> None:
        self.hearing, self.access, self.limits, self.workers = hearing, access, limits, workers
        self.publish, self.tracer, self._certificate = publish, tracer, certificate
        self.connections: set[ServerConnection] = set()
        self._clients: set[ServerConnection] = set()
        self._page, self._page_headers = load_page()
        self._model = model

    @property
    def ready(self) -> dict[str, Any]:
        """The first message to each client."""
        hearing, info = self.hearing, self.hearing.recognizer.info
        return {
            "type": "ready",
            "version": __version__,
            "model": self._model,
            "head": info.head,
            "labels": list(info.classes),
            "after_talk_s": hearing.config.after_talk_s,
            "max_message_bytes": self.limits.max_message_bytes,
        } | self.offered

    @property
    def can_learn(self) -> bool:
        """Whether clients may teach words."""
        return self.hearing.chosen is None and can_learn(self.hearing.recognizer)

    @property
    def offered(self) -> dict[str, Any]:
        """The words offered, and which of them were taught; `own` is None if words can't be taught."""
        own = self.hearing.recognizer.own
        return {
            "thresholds": self.hearing.thresholds(Settings()),
            "own": list(own) if own is not None and self.can_learn else None,
        }

    def tell_others(self, client: ServerConnection) -> None:
        """Send the words offered to all clients but one, which changed them."""
        broadcast(self._clients - {client}, json.dumps({"type": "offered"} | self.offered))

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
            ssl=self._certificate,
        )
        port = self._server.sockets[0].getsockname()[1]
        self.access = Access(self.access.host, port, self.access.token, self.access.is_tls)
        return self

    @property
    def url(self) -> str:
        return self.access.url

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
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if len(hosts) != 1 or not self.access.knows(hosts[0]):
            return plain(HTTPStatus.MISDIRECTED_REQUEST, "wrong Host: this server has another name")
        path = request.path.partition("?")[0]
        if path == "/":
            return Response(HTTPStatus.OK, "OK", Headers(self._page_headers), self._page)
        if path != SOCKET_PATH:
            return plain(HTTPStatus.NOT_FOUND, "not found: only / and /socket are served")
        if origins and not (len(origins) == 1 and self.access.is_same_origin(origins[0], hosts[0])):
            return plain(HTTPStatus.FORBIDDEN, "wrong Origin: only this server's own page may open the socket")
        if not self.access.accepts(shown_tokens(request.headers)):
            return plain(HTTPStatus.UNAUTHORIZED, "a token is needed: it is in the address that the server printed")
        if len(self._clients) >= self.limits.max_clients:
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients")
        return None


def level(heard_s: float, dbfs: float, is_speaking: bool) -> dict[str, Any]:
    return {"type": "level", "at_s": round(heard_s, 3), "dbfs": round(dbfs, 1), "speaking": is_speaking}


def shown_tokens(headers: Headers) -> list[str]:
    """The tokens in `Authorization: Bearer ...` and among the subprotocols."""
    bearer = [value.removeprefix("Bearer ") for value in headers.get_all("Authorization") if value[:7] == "Bearer "]
    offered = [one.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for one in value.split(",")]
    return bearer + [one.removeprefix(TOKEN_PREFIX) for one in offered if one.startswith(TOKEN_PREFIX)]


def plain(status: HTTPStatus, text: str) -> Response:
    body = f"{text}\n".encode()
    headers = Headers(
        {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
    )
    return Response(status, status.phrase, headers, body)


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
