"""Wyoming over real sockets, with the client of its own package and with ones that break the rules."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wyoming", reason="needs the extra `serve`")

from serving import TEN, demo_pcm, factory, run
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient, AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.wake import Detect, Detection, NotDetected

from speech import results
from speech.console import DEMO
from speech.errors import ConfigError
from speech.grammar import Grammar
from speech.serve.security import Limits, Machines
from speech.serve.wyoming import SERVICE, WyomingServer, announced, merged, parse_uri
from speech.sound.files import read

DEVICE_HZ = 44100
CHUNK_S = 0.02
DEMO_PCM = demo_pcm(DEVICE_HZ)
FIRST_WORD = DEMO_PCM[: 4 * DEVICE_HZ]


@asynccontextmanager
async def served(**more: Any) -> AsyncIterator[int]:
    """The port of a server."""
    more = {"wake": factory(), "speech": factory("connected")} | more
    async with WyomingServer("tcp://127.0.0.1:0", **more) as server:
        yield int(server.url.rpartition(":")[2])


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


def test_describe_names_the_words_and_the_model() -> None:
    async def check() -> None:
        async with served() as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Describe().event())
            info = await next_of(client, Info)
            assert [model.name for model in info.wake[0].models] == list(factory().words)
            assert info.asr[0].models[0].languages == ["en"]
            await client.write_event(Ping(text="still there?").event())
            assert (await next_of(client, Pong)).text == "still there?"

    run(check)


@pytest.mark.parametrize("cut", [37, 1763, 100_000])
def test_where_the_bytes_are_cut_changes_nothing(cut: int) -> None:
    async def check() -> None:
        async with served() as port:
            assert await transcript_of(port, FIRST_WORD, cut=cut) == "yes"

    run(check)


def test_stereo_and_32_bits_are_heard_as_well() -> None:
    first = read(DEMO, 16000)[: 4 * 16000]
    stereo = np.repeat(np.round(2**31 * 0.99 * first).astype("<i4"), 2).tobytes()

    async def check() -> None:
        async with served() as port:
            assert await transcript_of(port, stereo, rate=16000, width=4, channels=2) == "yes no up"

    run(check)


def test_a_grammar_limits_the_transcript() -> None:
    grammar = Grammar.parse("yes | no | left | right", TEN).repeated()
    strict = replace(factory("connected"), grammar=grammar)

    async def check() -> None:
        async with served(speech=strict) as port:
            assert await transcript_of(port, DEMO_PCM) == "yes no left right"

    run(check)


def test_wake_words_are_reported_while_the_audio_comes() -> None:
    async def check() -> None:
        async with served() as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Detect(names=["down", "go"]).event())
            sending = asyncio.create_task(say(client, DEMO_PCM))
            found = [await next_of(client, Detection) for _ in range(2)]
            assert [detection.name for detection in found] == ["down", "go"]
            assert 5000 < found[0].timestamp < 5600, "ms of audio when it was decided"
            await sending

    run(check)


def test_a_stream_without_the_wake_word_says_so() -> None:
    async def check() -> None:
        async with served() as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Detect(names=["cat"]).event())
            await say(client, DEMO_PCM)
            await next_of(client, NotDetected)
            await client.write_event(Detect(names=["computer"]).event())
            assert "computer" in (await next_of(client, Error)).text

    run(check)


def test_clients_at_once_hear_the_ten_words_and_they_are_published() -> None:
    published: list[str] = []

    async def check() -> None:
        async with served(publish=lambda detection: published.append(detection.word)) as port:
            texts = await asyncio.gather(*(transcript_of(port, DEMO_PCM, cut=1764 + 2 * n) for n in range(3)))
            assert [text.split() for text in texts] == [TEN] * 3

    run(check)
    assert sorted(published) == sorted(3 * TEN)


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
def test_garbage_ends_that_connection_and_nothing_else(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with served() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                writer.write(garbage)
                await writer.drain()
                answer = await asyncio.wait_for(reader.read(), 60)
                assert not answer or json.loads(answer.splitlines()[0])["type"] == "error", answer
            writer.close()
            assert await transcript_of(port, FIRST_WORD) == "yes"

    run(check)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


def test_a_client_that_vanishes_leaves_nothing_behind() -> None:
    async def check() -> None:
        async with served(limits=Limits(max_clients=1)) as port:
            for _ in range(5):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                about = {"rate": DEVICE_HZ, "width": 2, "channels": 1}
                with suppress(ConnectionError):
                    await async_write_event(AudioChunk(**about, audio=DEMO_PCM[:50_000]).event(), writer)
                writer.transport.abort()
            text = ""
            while not text:  # until the server has noticed, at the latest when the test's time is over
                with suppress(ConnectionError, AssertionError):
                    text = await transcript_of(port, FIRST_WORD)
            assert text == "yes"

    run(check)


def test_no_more_clients_than_allowed() -> None:
    async def check() -> None:
        async with served(limits=Limits(max_clients=2)) as port:
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
        await asyncio.wait_for(async_write_event(Describe().event(), writer), 60)


def test_a_silent_client_and_one_that_reads_nothing_are_dropped() -> None:
    async def check() -> None:
        async with served(limits=Limits(idle_s=0.3, send_s=0.3)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert b"no event for 0.3 s" in await asyncio.wait_for(reader.read(), 60)
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            with pytest.raises(ConnectionError):
                await ask_without_end(writer)

    run(check)


def test_a_recording_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech.serve.wyoming.MAX_SPEECH_S", 2.0)

    async def check() -> None:
        async with served() as port, AsyncTcpClient("127.0.0.1", port) as client:
            with suppress(ConnectionError):
                await say(client, DEMO_PCM)
            assert "more than 2 s" in (await next_of(client, Error)).text

    run(check)


def test_what_is_wanted_may_change_within_a_connection() -> None:
    """`detect` after `audio-start` counts for the audio after it, and for the next streams too."""
    about = {"rate": DEVICE_HZ, "width": 2, "channels": 1}

    async def check() -> None:
        async with served() as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(AudioStart(**about).event())
            await client.write_event(AudioChunk(**about, audio=FIRST_WORD).event())
            await client.write_event(Detect(names=["Yes", "up"]).event())
            for begin in (0, 1, 2, 3):
                part = DEMO_PCM[2 * begin * DEVICE_HZ : 2 * (begin + 1) * DEVICE_HZ]
                await client.write_event(AudioChunk(**about, audio=part).event())
            await client.write_event(AudioStop().event())
            assert [(await next_of(client, Detection)).name for _ in range(2)] == ["yes", "up"]
            await say(client, FIRST_WORD)
            assert (await next_of(client, Detection)).name == "yes", "still wake words"
            await client.write_event(Transcribe().event())
            await say(client, FIRST_WORD)
            assert (await next_of(client, Transcript)).text == "yes"

    run(check)


def test_who_waits_for_a_wake_word_may_be_silent() -> None:
    async def check() -> None:
        async with served(limits=Limits(idle_s=0.3)) as port, AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Detect().event())
            await asyncio.sleep(1)
            await say(client, FIRST_WORD)
            assert (await next_of(client, Detection)).name == "yes"

    run(check)


def test_an_error_reaches_a_client_that_is_still_sending() -> None:
    """A reset would take it away; most of what is sent here arrives after the error."""
    start = b'{"type": "audio-start", "data": {"rate": -1, "width": 2, "channels": 1}}\n'

    async def check() -> None:
        async with served() as port:
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                for data in (start, *[b"x" * 500_000] * 8):
                    writer.write(data)
                    await writer.drain()
                assert b"sample rate" in await asyncio.wait_for(reader.read(), 60)
                writer.close()

    run(check)


def test_own_words_stand_in_the_text_where_they_were_said() -> None:
    def heard(word: str, start_s: float, end_s: float) -> results.Detection:
        return results.Detection(word, start_s, end_s, 0.9, end_s)

    commands = [heard("left", 0, 1), heard("no", 2.1, 2.4), heard("stop", 4, 5)]
    own = [heard("computer", 2, 3), heard("lamp", 6, 7)]
    assert [one.word for one in merged(commands, own)] == ["left", "computer", "stop", "lamp"]


def test_home_assistant_finds_the_server_by_multicast() -> None:
    from zeroconf import IPVersion, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

    async def check() -> None:
        found = asyncio.Event()
        async with AsyncZeroconf(ip_version=IPVersion.V4Only) as listening:
            names: list[str] = []

            def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: Any) -> None:
                names.append(name)
                found.set()

            browser = AsyncServiceBrowser(listening.zeroconf, SERVICE, handlers=[changed])
            async with announced("0.0.0.0", 10400):
                await found.wait()
                info = await listening.async_get_service_info(SERVICE, names[0])
                assert info is not None
                assert info.port == 10400
                assert info.parsed_addresses()
                assert socket.gethostname() in names[0]
            await browser.async_cancel()

    run(check)


def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    async def check() -> None:
        uri = f"unix://{tmp_path}/speech.sock"
        async with WyomingServer(uri, factory(), factory("connected")), AsyncClient.from_uri(uri) as client:
            await say(client, FIRST_WORD)
            assert (await next_of(client, Transcript)).text == "yes"

    run(check)


def test_beyond_this_machine_only_for_named_addresses() -> None:
    make = partial(WyomingServer, "tcp://0.0.0.0:10400", factory(), factory("connected"))
    with pytest.raises(ConfigError, match="--allow"):
        make()
    make(allowed=Machines(["192.168.1.0/24"]))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://:1", "tcp://a:b", "unix://", "x"])
def test_strange_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="--uri expects"):
        parse_uri(uri)
