"""The Wyoming protocol of Home Assistant and its voice satellites: speech to text, and wake words.

An event is a line of JSON, followed by bytes; https://github.com/OHF-Voice/wyoming describes it.
"""

import asyncio
import logging
import platform
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ifaddr
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Eventable, async_read_event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info, WakeModel, WakeProgram
from wyoming.ping import Ping, Pong
from wyoming.wake import Detect, Detection, NotDetected
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from speech import __version__, results
from speech.errors import ConfigError, SpeechError
from speech.results import Examined
from speech.serve.security import Limits, Machines, is_loopback
from speech.serve.streams import ClientError, ClientStream, ListenerFactory, PcmDecoder

NAME = "speech-commands-offline"
SERVICE = "_wyoming._tcp.local."
LANGUAGES = ["en"]
MAX_SPEECH_S = 600.0
"""Longest recording for speech to text; streams for wake words may be endless."""
LOST_S = 60
"""A client that waits silently for its wake word is asked after this time whether it is still there, by TCP."""
EVENTS: tuple[Any, ...] = (Describe, Ping, Transcribe, Detect, AudioStart, AudioChunk, AudioStop)
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""Exceptions that the wyoming package raises for malformed events."""

logger = logging.getLogger(__name__)


class LimitedReader:
    """The part of StreamReader that `async_read_event` uses, with a limit on the size of a message."""

    def __init__(self, reader: asyncio.StreamReader, limit: int) -> None:
        self.readline = reader.readline  # its own limit is 64 KiB
        self._reader, self._limit = reader, limit

    async def readexactly(self, n: int) -> bytes:
        if n > self._limit:
            raise ClientError(f"a message of {n} bytes; at most {self._limit} are allowed")
        return await self._reader.readexactly(n)


class WakeStream:
    """A stream in which wake words are reported as they are heard."""

    def __init__(self, server: "WyomingServer", names: Sequence[str], *audio_format: int) -> None:
        self._server, self._names, self._has_woken = server, names, False
        self._stream = ClientStream(PcmDecoder(*audio_format), partial(server.wake.listener, words=names))

    def feed(self, audio: bytes, at_ms: int | None) -> list[Eventable]:
        """Process the next samples.  Returns the answers; they carry the time of the chunk, if it has one."""
        return self._report(self._stream.feed(audio), at_ms)

    def finish(self) -> list[Eventable]:
        """End the stream.  Returns the last answers."""
        return self._report(self._stream.finish(), None) or ([] if self._has_woken else [NotDetected()])

    def _report(self, utterances: Sequence[Examined], at_ms: int | None) -> list[Eventable]:
        heard = [one for utterance in utterances for one in utterance.detections if one.word in self._names]
        for detection in heard:
            self._server.publish(detection)
        self._has_woken |= bool(heard)
        return [Detection(one.word, round(1000 * one.at_s) if at_ms is None else at_ms) for one in heard]


class TextStream:
    """A stream that becomes a text: commands, and own words, which only the other bundle knows.

    It is meant for this program, so no command in it is rejected as talk to somebody else.
    """

    def __init__(self, server: "WyomingServer", *audio_format: int) -> None:
        wake, own = server.wake, server.wake.recognizer.own or ()
        words = [word for word in wake.words if word in own]
        listeners = [partial(server.speech.listener, after_talk_s=0.0, wake="")]
        if words:
            listeners.append(partial(wake.listener, words=words, after_talk_s=0.0, wake=""))
        self._server, self._heard = server, [list[results.Detection]() for _ in listeners]
        self._streams = [ClientStream(PcmDecoder(*audio_format), listener) for listener in listeners]

    def feed(self, audio: bytes, _: int | None) -> list[Eventable]:
        """Process the next samples.  Returns nothing.  Raises ClientError if they are too many."""
        self._collect(stream.feed(audio) for stream in self._streams)
        if self._streams[0].decoder.heard_s > MAX_SPEECH_S:
            raise ClientError(f"a recording of more than {MAX_SPEECH_S:.0f} s")
        return []

    def finish(self) -> list[Eventable]:
        """End the stream.  Returns the text."""
        self._collect(stream.finish() for stream in self._streams)
        words = merged(*self._heard)
        for detection in words:
            self._server.publish(detection)
        return [transcript(*(detection.word for detection in words))]

    def _collect(self, found: Iterable[Sequence[Examined]]) -> None:
        for heard, utterances in zip(self._heard, found, strict=True):
            heard += [one for utterance in utterances for one in utterance.detections]


def merged(commands: Sequence[results.Detection], own: Sequence[results.Detection] = ()) -> list[results.Detection]:
    """The words of both in order of time; where they overlap, the own word counts."""
    kept = [
        one for one in commands if not any(one.start_s < other.end_s and other.start_s < one.end_s for other in own)
    ]
    return sorted([*kept, *own], key=lambda detection: detection.start_s)


class Client:
    """One connection.  `transcribe` or `detect` decides how the audio after it is used; the default is `transcribe`."""

    def __init__(self, server: "WyomingServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._limited = LimitedReader(reader, server.limits.max_message_bytes)
        self._wake_words: list[str] | None = None  # None: speech to text is wanted
        self._stream: WakeStream | TextStream | None = None
        self._format: tuple[int, ...] = ()

    async def run(self) -> None:
        """Serve the client until it leaves, breaks a rule or is too slow."""
        try:
            while (message := await self._read()) is not None:
                for answer in await self._react(message):
                    await self._write(answer)
        except SpeechError as error:
            logger.info("client dropped: %s", error)
            with suppress(OSError, TimeoutError):
                await self._write(Error(text=str(error), code=type(error).__name__))
                await self._read_on()
        except (OSError, EOFError, TimeoutError) as error:
            logger.info("client gone: %s", str(error) or type(error).__name__)
            self._writer.transport.abort()  # drop what the client has not received yet
        finally:
            self._writer.close()

    async def _read(self) -> Eventable | None:
        """The next event of `EVENTS`; others are for other services.  None at the end."""
        idle_s = self._server.limits.idle_s
        while True:
            try:
                async with asyncio.timeout(idle_s if self._wake_words is None else None):
                    event = await async_read_event(self._limited)  # type: ignore[arg-type]
                if event is None:
                    return None
                if not (isinstance(event.type, str) and isinstance(event.data, dict)):
                    raise ClientError("not a Wyoming event")
                for kind in EVENTS:
                    if kind.is_type(event.type):
                        message: Eventable = kind.from_event(event)
                        return message
            except MALFORMED as error:
                raise ClientError("not a Wyoming event, or a field of it is missing or wrong") from error
            except TimeoutError:
                raise ClientError(f"no event for {idle_s:g} s") from None

    async def _read_on(self) -> None:
        """Read what the client still sends: closing at once would reset the connection, and the error would be lost."""
        self._writer.write_eof()
        async with asyncio.timeout(self._server.limits.send_s):
            while await self._reader.read(1 << 16):
                pass

    async def _write(self, answer: Eventable) -> None:
        async with asyncio.timeout(self._server.limits.send_s):
            await async_write_event(answer.event(), self._writer)

    async def _react(self, message: Eventable) -> Sequence[Eventable]:
        match message:
            case Describe():
                return [self._server.info()]
            case Ping():
                return [Pong(text=message.text)]
            case Transcribe():
                self._wake_words = self._stream = None
            case Detect():
                self._wake_words, self._stream = self._known(message.names), None
            case AudioStart():
                await self._open(message.rate, message.width, message.channels)
            case AudioChunk():
                audio_format = (message.rate, message.width, message.channels)
                stream = self._stream
                if stream is None or audio_format != self._format:
                    stream = await self._open(*audio_format)
                at_ms = message.timestamp if type(message.timestamp) is int else None
                return await asyncio.to_thread(stream.feed, message.audio, at_ms)
            case AudioStop():
                stream, self._stream = self._stream, None
                if stream:
                    return await asyncio.to_thread(stream.finish)
                return [transcript()] if self._wake_words is None else [NotDetected()]
        return []

    def _known(self, names: object) -> list[str]:
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ClientError("the names of wake words must be a list")
        return list(self._server.wake.thresholds(names))

    async def _open(self, *audio_format: int) -> WakeStream | TextStream:
        """Begin a stream of the kind that the client wants."""
        names, self._format = self._wake_words, audio_format
        if names is None:
            self._stream = await asyncio.to_thread(TextStream, self._server, *audio_format)
        else:
            self._stream = await asyncio.to_thread(WakeStream, self._server, names, *audio_format)
        return self._stream


def transcript(*words: str) -> Transcript:
    return Transcript(text=" ".join(words), language=LANGUAGES[0])


@dataclass
class WyomingServer:
    """Serves at `tcp://host:port` or `unix://path`, as a context manager.

    Raises:
        ConfigError: another kind of address, or one that other machines can reach while none is allowed.
        OSError: on entering, when the address is in use or not this machine's.
    """

    uri: str
    """Port 0 chooses a free port."""
    wake: ListenerFactory
    """Single words, offered as wake words."""
    speech: ListenerFactory
    """Sequences of words, for speech to text."""
    limits: Limits = field(default_factory=Limits)
    allowed: Machines = field(default_factory=lambda: Machines(()))
    """Machines that clients may connect from, besides this one."""
    publish: Callable[[results.Detection], None] = lambda _: None
    """Called with each detection, in any thread."""

    def __post_init__(self) -> None:
        self._address = parse_uri(self.uri)
        if isinstance(self._address, tuple) and not (is_loopback(self._address[0]) or self.allowed):
            raise ConfigError(
                f"{self.uri} can be reached from other machines, and Wyoming has no password: name the machines that "
                "may connect, as in --allow 192.168.1.7"
            )
        self._clients: set[asyncio.Task[None]] = set()

    def info(self) -> Info:
        """The answer to `describe`."""
        source, release = Attribution(NAME, ""), __version__
        text = AsrModel("connected", source, True, "English commands", release, LANGUAGES)
        words = [WakeModel(word, source, True, word, release, LANGUAGES, word) for word in self.wake.words]
        return Info(
            asr=[AsrProgram(NAME, source, True, "Spoken commands to text, offline", release, [text])],
            wake=[WakeProgram(NAME, source, True, "Spoken words, offline", release, words)],
        )

    async def __aenter__(self) -> "WyomingServer":
        if isinstance(self._address, Path):
            self._remove_socket()  # left by a killed server
            self._server = await asyncio.start_unix_server(self._accept, self._address)
        else:
            self._server = await asyncio.start_server(self._accept, *self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self._clients:  # again and again: a task may swallow a cancellation
            for task in self._clients:
                task.cancel()
            await asyncio.wait(self._clients, timeout=1.0)
        self._remove_socket()

    def _remove_socket(self) -> None:
        if isinstance(self._address, Path) and self._address.is_socket():
            self._address.unlink()

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """As they are bound; None for the path of a socket."""
        return None if isinstance(self._address, Path) else self._server.sockets[0].getsockname()[:2]

    @property
    def url(self) -> str:
        """Address of the server."""
        if self.host_and_port is None:
            return f"unix://{self._address}"
        host, port = self.host_and_port
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        is_welcome = not isinstance(peer, tuple) or is_loopback(peer[0]) or peer[0] in self.allowed
        if not is_welcome or len(self._clients) >= self.limits.max_clients:
            logger.info("client refused: %s", "too many" if is_welcome else f"{peer[0]} is not allowed")
            writer.transport.abort()
            return
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a silent client may be gone
        if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LOST_S)
        task = asyncio.create_task(Client(self, reader, writer).run())
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)


@asynccontextmanager
async def announced(host: str, port: int) -> AsyncIterator[None]:
    """Let Home Assistant find the server by multicast DNS, until the end of the block."""
    addresses = [host]
    if host in ("0.0.0.0", "::"):
        every = (address.ip for adapter in ifaddr.get_adapters() for address in adapter.ips if address.is_IPv4)
        addresses = [str(ip) for ip in every if not is_loopback(str(ip))]
    zeroconf = AsyncZeroconf(interfaces=addresses)
    name = f"{NAME} on {platform.node() or 'a machine'}"[:63]
    service = AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", port=port, parsed_addresses=addresses)
    try:
        await zeroconf.async_register_service(service, allow_name_change=True)
        yield
    finally:
        await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()


def parse_uri(uri: str) -> tuple[str, int] | Path:
    """Host and port, or the path of a socket.  Raises ConfigError for another kind of address."""
    parts = urlsplit(uri)
    try:
        if parts.scheme == "tcp" and parts.hostname and parts.port is not None:
            return parts.hostname, parts.port
    except ValueError:
        pass  # the port is not a valid number
    if parts.scheme == "unix" and parts.path:
        return Path(parts.netloc + parts.path)
    raise ConfigError(f"--uri expects tcp://127.0.0.1:10400 or unix:///run/speech.sock, got {uri!r}")
