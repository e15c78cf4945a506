"""The Wyoming protocol of Home Assistant and its voice satellites: speech to text, and wake words.

An event is a line of JSON, followed by bytes; https://github.com/OHF-Voice/wyoming describes it.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_read_event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info, WakeModel, WakeProgram
from wyoming.ping import Ping, Pong
from wyoming.wake import Detect, Detection, NotDetected

from speech import __version__
from speech.errors import ConfigError, SpeechError
from speech.results import Examined
from speech.serve.mqtt import Publish
from speech.serve.security import Limits, Network, is_allowed, is_loopback
from speech.serve.streams import Hearing, PcmFormat, Settings, Stream, Workers

NAME = "speech-commands-offline"
LANGUAGES = ["en"]
MAX_SPEECH_S = 600.0
"""Longest recording for speech to text; streams for wake words may be endless."""
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""Exceptions that the wyoming package raises for malformed events."""

logger = logging.getLogger(__name__)


class ClientError(SpeechError):
    """A client sent something unsupported; it gets the error and is disconnected."""


@dataclass(frozen=True)
class House:
    """What all clients share."""

    wake: Hearing
    """Single words, offered as wake words."""
    speech: Hearing
    """Sequences of words, for speech to text."""
    limits: Limits
    networks: Sequence[Network]
    """Networks that clients may connect from, besides this machine."""
    workers: Workers
    publish: Publish
    """Called with each detection."""

    def info(self) -> Info:
        """The answer to `describe`."""
        source, release = Attribution(NAME, ""), __version__
        text = AsrModel("connected", source, True, "English commands", release, LANGUAGES)
        words = [WakeModel(word, source, True, word, release, LANGUAGES, word) for word in self.wake.words]
        return Info(
            asr=[AsrProgram(NAME, source, True, "Spoken commands to text, offline", release, [text])],
            wake=[WakeProgram(NAME, source, True, "Spoken words, offline", release, words)],
        )


class LimitedReader:
    """The part of StreamReader that `async_read_event` uses, with a limit on the size of a message."""

    def __init__(self, reader: asyncio.StreamReader, limit: int) -> None:
        self._reader, self._limit = reader, limit

    async def readline(self) -> bytes:
        return await self._reader.readline()  # its own limit is 64 KiB

    async def readexactly(self, n: int) -> bytes:
        if n > self._limit:
            raise ClientError(f"a message of {n} bytes; at most {self._limit} are allowed")
        return await self._reader.readexactly(n)


class Client:
    """One connection.

    `transcribe` or `detect` decides how the next stream is used; the default is `transcribe`.
    """

    def __init__(self, house: House, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._house, self._writer = house, writer
        self._reader = LimitedReader(reader, house.limits.max_message_bytes)
        self._wanted: Literal["text", "wake"] = "text"
        self._names: Sequence[str] | None = None
        self._stream: Stream | None = None
        self._pcm: PcmFormat | None = None
        self._words: list[str] = []

    async def run(self) -> None:
        """Serve the client until it leaves, breaks a rule or is too slow."""
        try:
            while (event := await self._read()) is not None:
                for answer in await self._answer(event):
                    await self.write(answer)
        except SpeechError as error:
            logger.info("client dropped: %s", error)
            with suppress(OSError, TimeoutError):
                await self.write(Error(text=str(error), code=type(error).__name__))
        except (OSError, EOFError, TimeoutError) as error:
            logger.info("client gone: %s", error or type(error).__name__)
            self._writer.transport.abort()  # drop what the client has not received yet
        finally:
            self._writer.close()

    async def _read(self) -> Event | None:
        """The next event; None at the end."""
        try:
            async with asyncio.timeout(self._house.limits.idle_s):
                event = await async_read_event(self._reader)  # type: ignore[arg-type]
        except MALFORMED as error:
            raise ClientError("not a Wyoming event") from error
        if event is not None and not (isinstance(event.type, str) and isinstance(event.data, dict)):
            raise ClientError("not a Wyoming event")
        return event

    async def write(self, answer: Eventable) -> None:
        async with asyncio.timeout(self._house.limits.send_s):
            await async_write_event(answer.event(), self._writer)

    async def _answer(self, event: Event) -> Sequence[Eventable]:
        try:
            return await self._react(event)
        except MALFORMED as error:
            if isinstance(error, SpeechError):
                raise
            raise ClientError(f"a {event.type!r} event with a missing or wrong field") from error

    async def _react(self, event: Event) -> Sequence[Eventable]:
        kind = event.type
        if Describe.is_type(kind):
            return [self._house.info()]
        if Ping.is_type(kind):
            return [Pong(text=Ping.from_event(event).text)]
        if Transcribe.is_type(kind):
            self._wanted = "text"
        elif Detect.is_type(kind):
            self._wanted, self._names = "wake", self._known(Detect.from_event(event).names)
        elif AudioStart.is_type(kind):
            start = AudioStart.from_event(event)
            await self._begin(PcmFormat(start.rate, start.width, start.channels))
        elif AudioChunk.is_type(kind):
            return await self._hear(AudioChunk.from_event(event))
        elif AudioStop.is_type(kind):
            return await self._finish()
        return []  # other events are for other services

    def _known(self, names: Sequence[str] | None) -> Sequence[str] | None:
        strange = sorted(set(names or ()) - set(self._house.wake.words))
        if strange:
            raise ClientError(f"no wake word {', '.join(strange)}; there are {', '.join(self._house.wake.words)}")
        return list(names) if names else None

    async def _begin(self, pcm: PcmFormat) -> None:
        if self._wanted == "text":
            hearing, settings = self._house.speech, Settings()
        else:
            hearing, settings = self._house.wake, Settings(self._names)
        self._pcm, self._words = pcm, []
        self._stream = await self._house.workers.run(Stream, hearing, pcm, settings)

    async def _hear(self, chunk: AudioChunk) -> Sequence[Eventable]:
        pcm = PcmFormat(chunk.rate, chunk.width, chunk.channels)
        if self._stream is None or pcm != self._pcm:
            await self._begin(pcm)
        assert self._stream is not None
        heard = self._take(await self._house.workers.run(self._stream.feed, chunk.audio), chunk.timestamp)
        if self._wanted == "text" and self._stream.heard_s > MAX_SPEECH_S:
            raise ClientError(f"a recording of more than {MAX_SPEECH_S:.0f} s")
        return heard

    async def _finish(self) -> Sequence[Eventable]:
        stream, wanted, self._stream = self._stream, self._wanted, None
        heard = self._take(await self._house.workers.run(stream.finish)) if stream else []
        self._wanted, words = "text", self._words
        if wanted == "text":
            return [Transcript(text=" ".join(words), language=LANGUAGES[0])]
        return heard if words else [NotDetected()]

    def _take(self, utterances: Sequence[Examined], chunk_ms: int | None = None) -> Sequence[Eventable]:
        """Store and publish the detections of a chunk.  Returns the events to send at once."""
        detections = [detection for utterance in utterances for detection in utterance.detections]
        for detection in detections:
            self._words.append(detection.word)
            self._house.publish(detection)
        if self._wanted == "text":
            return []
        return [
            Detection(name=heard.word, timestamp=round(1000 * heard.at_s) if chunk_ms is None else chunk_ms)
            for heard in detections
        ]


class WyomingServer:
    """Serves at `tcp://host:port` or `unix://path`, as a context manager.

    Args:
        uri: the address; port 0 chooses a free port.
        house: what all clients share.
    Raises:
        ConfigError: another kind of address, or one that other machines can reach while no network is allowed.
        OSError: on entering, when the address is in use or not this machine's.
    """

    def __init__(self, uri: str, house: House) -> None:
        self._house, self._address = house, parse_uri(uri)
        if isinstance(self._address, tuple) and not (is_loopback(self._address[0]) or house.networks):
            raise ConfigError(
                f"{uri} can be reached from other machines, and Wyoming has no password: name the machines that "
                "may connect, as in --allow 192.168.1.7"
            )
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "WyomingServer":
        if isinstance(self._address, Path):
            self._remove_socket()  # left by a killed server
            self._server = await asyncio.start_unix_server(self._accept, self._address)
        else:
            self._server = await asyncio.start_server(self._accept, *self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._remove_socket()

    def _remove_socket(self) -> None:
        if isinstance(self._address, Path) and self._address.is_socket():
            self._address.unlink()

    @property
    def url(self) -> str:
        """Address of the server, with the actual port if port 0 was asked for."""
        if isinstance(self._address, Path):
            return f"unix://{self._address}"
        host = f"[{self._address[0]}]" if ":" in self._address[0] else self._address[0]
        return f"tcp://{host}:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        is_welcome = not isinstance(peer, tuple) or is_allowed(peer[0], self._house.networks)
        if not is_welcome or len(self._clients) >= self._house.limits.max_clients:
            logger.info("client refused: %s", "too many" if is_welcome else f"{peer[0]} is not allowed")
            writer.transport.abort()
            return
        task = asyncio.create_task(Client(self._house, reader, writer).run())
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)


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
