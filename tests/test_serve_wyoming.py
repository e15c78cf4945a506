"""Wyoming over real sockets, with the client of its own package and with ones that break the rules."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wyoming", reason="needs the extra `serve`")

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient, AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.wake import Detect, Detection, NotDetected

from speech.errors import ConfigError
from speech.grammar import Grammar
from speech.listen import DEMO
from speech.recognizer import Recognizer
from speech.segment import ListenerConfig
from speech.serve.security import Limits, parse_networks
from speech.serve.streams import Hearing, Workers
from speech.serve.wyoming import House, WyomingServer, parse_uri
from speech.sound.files import read

TEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
DEVICE_HZ = 44100
CHUNK_S = 0.02
TIMEOUT_S = 60.0


def hearing(model: str, **more: Any) -> Hearing:
    return Hearing(Recognizer.load(model), **more)


@pytest.fixture(scope="module")
def house() -> House:
    speech = hearing("connected", config=ListenerConfig(after_talk_s=0.0))
    return House(hearing("commands"), speech, Limits(), (), Workers(), lambda _: None)


@asynccontextmanager
async def served(house: House) -> AsyncIterator[int]:
    """The port of a server."""
    async with WyomingServer("tcp://127.0.0.1:0", house) as server:
        yield int(server.url.rpartition(":")[2])


def run(check: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(check(), TIMEOUT_S))


@pytest.fixture(scope="module")
def demo_pcm() -> bytes:
    return (32767 * read(DEMO, DEVICE_HZ)).astype("<i2").tobytes()


async def say(client: AsyncClient, pcm: bytes, cut: int = round(CHUNK_S * DEVICE_HZ) * 2, **about: int) -> None:
    """Send a recording in chunks of `cut` bytes."""
    about = {"rate": DEVICE_HZ, "width": 2, "channels": 1} | about
    await client.write_event(AudioStart(**about).event())
    for begin in range(0, len(pcm), cut):
        await client.write_event(AudioChunk(**about, audio=pcm[begin : begin + cut]).event())
    await client.write_event(AudioStop().event())


async def next_of(client: AsyncClient, kind: type) -> Any:
    """The next event, which must be of that kind."""
    event = await client.read_event()
    assert event is not None, f"the server hung up, {kind.__name__} expected"
    assert kind.is_type(event.type), event
    return kind.from_event(event)


async def transcript_of(port: int, pcm: bytes, **more: int) -> str:
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Transcribe(language="en").event())
        await say(client, pcm, **more)
        text: str = (await next_of(client, Transcript)).text
        return text


def test_describe_names_the_words_and_the_model(house: House) -> None:
    async def check() -> None:
        async with served(house) as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Describe().event())
            info = await next_of(client, Info)
            assert [model.name for model in info.wake[0].models] == list(house.wake.words)
            assert info.asr[0].models[0].languages == ["en"]
            await client.write_event(Ping(text="still there?").event())
            assert (await next_of(client, Pong)).text == "still there?"

    run(check)


def test_the_demo_becomes_its_ten_words(house: House, demo_pcm: bytes) -> None:
    async def check() -> None:
        async with served(house) as port:
            assert (await transcript_of(port, demo_pcm)).split() == TEN

    run(check)


@pytest.mark.parametrize("cut", [37, 1763, 100_000])
def test_where_the_bytes_are_cut_changes_nothing(house: House, demo_pcm: bytes, cut: int) -> None:
    pcm = demo_pcm[: 4 * DEVICE_HZ * 2]

    async def check() -> None:
        async with served(house) as port:
            whole = await transcript_of(port, pcm)
            assert whole
            assert await transcript_of(port, pcm, cut=cut) == whole

    run(check)


def test_stereo_and_32_bits_are_heard_as_well(house: House) -> None:
    first = read(DEMO, 16000)[: 4 * 16000]
    stereo = np.repeat(np.round(2**31 * 0.99 * first).astype("<i4"), 2).tobytes()

    async def check() -> None:
        async with served(house) as port:
            assert await transcript_of(port, stereo, rate=16000, width=4, channels=2) == "yes no up"

    run(check)


def test_a_grammar_limits_the_transcript(house: House, demo_pcm: bytes) -> None:
    grammar = Grammar.parse("yes | no | left | right", TEN).repeated()
    strict = replace(house, speech=replace(house.speech, grammar=grammar))

    async def check() -> None:
        async with served(strict) as port:
            assert await transcript_of(port, demo_pcm) == "yes no left right"

    run(check)


def test_wake_words_are_reported_while_the_audio_comes(house: House, demo_pcm: bytes) -> None:
    async def check() -> None:
        async with served(house) as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Detect(names=["down", "go"]).event())
            sending = asyncio.create_task(say(client, demo_pcm))
            found = [await next_of(client, Detection) for _ in range(2)]
            assert [detection.name for detection in found] == ["down", "go"]
            assert 5000 < found[0].timestamp < 5600, "ms of audio when it was decided"
            await sending

    run(check)


def test_a_stream_without_the_wake_word_says_so(house: House, demo_pcm: bytes) -> None:
    async def check() -> None:
        async with served(house) as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Detect(names=["cat"]).event())
            await say(client, demo_pcm)
            await next_of(client, NotDetected)
            await client.write_event(Detect(names=["computer"]).event())
            assert "computer" in (await next_of(client, Error)).text

    run(check)


def test_clients_at_once_do_not_disturb_each_other(house: House, demo_pcm: bytes) -> None:
    async def check() -> None:
        async with served(house) as port:
            texts = await asyncio.gather(*(transcript_of(port, demo_pcm, cut=1764 + 2 * n) for n in range(4)))
            assert [text.split() for text in texts] == [TEN] * 4

    run(check)


GARBAGE = [
    b"\n",
    b"\x00\xff" * 50_000,
    b"not json\n",
    b"[]\n",
    b"3\n",
    b"{}\n",
    b'{"type": 3}\n',
    b'{"type": "audio-chunk", "data": 7}\n',
    b'{"type": "audio-chunk", "data_length": "x"}\n',
    b'{"type": "audio-chunk", "data_length": 3}\n[1]',
    b'{"type": "audio-chunk", "payload_length": 10000000000}\n',
    b'{"type": "audio-chunk"}\n',
    b'{"type": "audio-start", "data": {"rate": -1, "width": 2, "channels": 1}}\n',
    b'{"type": "audio-start", "data": {"rate": "x", "width": 2, "channels": 1}}\n',
    b'{"type": "audio-start", "data": {"rate": 16000, "width": 0, "channels": 1}}\n',
    b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1000000000}}\n',
    b'{"type": "detect", "data": {"names": 5}}\n',
    b'{"type": "detect", "data": {"names": [[]]}}\n',
    b"[" * 60_000 + b"\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda data: repr(data[:40]))
def test_garbage_ends_that_connection_and_nothing_else(
    house: House, garbage: bytes, demo_pcm: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with served(house) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                writer.write(garbage)
                await writer.drain()
                answer = await asyncio.wait_for(reader.read(), 5)
                assert not answer or json.loads(answer.splitlines()[0])["type"] == "error", answer
            writer.close()
            assert await transcript_of(port, demo_pcm[: 4 * DEVICE_HZ]) == "yes"

    run(check)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


def test_a_client_that_vanishes_leaves_nothing_behind(house: House, demo_pcm: bytes) -> None:
    small = replace(house, limits=Limits(max_clients=1))

    async def check() -> None:
        async with served(small) as port:
            for _ in range(5):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                about = {"rate": DEVICE_HZ, "width": 2, "channels": 1}
                with suppress(ConnectionError):
                    await async_write_event(AudioChunk(**about, audio=demo_pcm[:50_000]).event(), writer)
                writer.transport.abort()
            text = ""
            while not text:  # until the server has noticed, at the latest when the test's time is over
                with suppress(ConnectionError, AssertionError):
                    text = await transcript_of(port, demo_pcm[: 4 * DEVICE_HZ])
            assert text == "yes"

    run(check)


def test_no_more_clients_than_allowed(house: House) -> None:
    small = replace(house, limits=Limits(max_clients=2))

    async def check() -> None:
        async with served(small) as port:
            clients = [AsyncTcpClient("127.0.0.1", port) for _ in range(3)]
            answers: list[Event | str | None] = []
            for client in clients:
                await client.connect()
                try:
                    await client.write_event(Ping().event())
                    answers.append(await client.read_event())
                except ConnectionError:
                    answers.append(None)
            assert [answer is not None for answer in answers] == [True, True, False]
            for client in clients:
                with suppress(ConnectionError):
                    await client.disconnect()

    run(check)


async def ask_without_end(writer: asyncio.StreamWriter) -> None:
    """The answers are many times larger than the questions, and are not read."""
    while True:
        await asyncio.wait_for(async_write_event(Describe().event(), writer), 5)


def test_a_silent_client_and_one_that_reads_nothing_are_dropped(house: House) -> None:
    short = replace(house, limits=Limits(idle_s=0.3, send_s=0.3))

    async def check() -> None:
        async with served(short) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            with pytest.raises(ConnectionError):
                await ask_without_end(writer)

    run(check)


def test_a_recording_without_end_is_ended(house: House, monkeypatch: pytest.MonkeyPatch, demo_pcm: bytes) -> None:
    monkeypatch.setattr("speech.serve.wyoming.MAX_SPEECH_S", 2.0)

    async def check() -> None:
        async with served(house) as port, AsyncTcpClient("127.0.0.1", port) as client:
            with suppress(ConnectionError):
                await say(client, demo_pcm)
            assert "more than 2 s" in (await next_of(client, Error)).text

    run(check)


def test_detections_are_published(house: House, demo_pcm: bytes) -> None:
    published: list[str] = []
    telling = replace(house, publish=lambda detection: published.append(detection.word))

    async def check() -> None:
        async with served(telling) as port:
            await transcript_of(port, demo_pcm)

    run(check)
    assert published == TEN


def test_a_unix_socket_serves_as_well(house: House, tmp_path: Path, demo_pcm: bytes) -> None:
    async def check() -> None:
        uri = f"unix://{tmp_path}/speech.sock"
        async with WyomingServer(uri, house), AsyncClient.from_uri(uri) as client:
            await say(client, demo_pcm[: 4 * DEVICE_HZ])
            assert (await next_of(client, Transcript)).text == "yes"

    run(check)


def test_beyond_this_machine_only_for_named_addresses(house: House) -> None:
    with pytest.raises(ConfigError, match="--allow"):
        WyomingServer("tcp://0.0.0.0:10400", house)
    WyomingServer("tcp://0.0.0.0:10400", replace(house, networks=parse_networks(["192.168.1.0/24"])))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://:1", "tcp://a:b", "unix://", "x"])
def test_strange_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="--uri expects"):
        parse_uri(uri)
