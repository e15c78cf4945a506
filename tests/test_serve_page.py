"""The page's socket with a real client, and everything that must not get in."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs the extra `serve`")

from serving import TEN, demo_pcm, factory, run
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speech.console import DEMO
from speech.errors import ConfigError
from speech.results import Detection
from speech.serve.page import PageServer
from speech.serve.security import Access, Limits, Machines, is_loopback, names_of
from speech.serve.streams import ListenerFactory
from speech.sound.files import read

DEVICE_HZ = 48000
CHUNK = 2 * 1024  # bytes
DEMO_PCM = demo_pcm(DEVICE_HZ)
FIRST_WORD = DEMO_PCM[: 3 * DEVICE_HZ]
Events = list[dict[str, Any]]


@asynccontextmanager
async def served(
    limits: Limits | None = None, access: Access | None = None, made: ListenerFactory | None = None, **more: Any
) -> AsyncIterator[PageServer]:
    access = access or Access("127.0.0.1", 0)
    async with PageServer(made or factory(), access, limits or Limits(), **more) as server:
        yield server


def socket_of(server: PageServer, name: str = "127.0.0.1", **more: Any) -> connect:
    """A connection to this machine that asks for it under a name."""
    port = server.access.port
    more = {"max_size": None, "compression": None, "ping_interval": None, "host": "127.0.0.1", "port": port} | more
    return connect(f"ws://{name}:{port}/socket", **more)


async def next_event(socket: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(await socket.recv())
    return event


async def send_all(socket: ClientConnection, pcm: bytes, chunk: int = CHUNK, **settings: Any) -> None:
    await socket.send(json.dumps({"type": "start", "rate_hz": DEVICE_HZ} | settings))
    for begin in range(0, len(pcm), chunk):
        await socket.send(pcm[begin : begin + chunk])
    await socket.send(json.dumps({"type": "stop"}))


async def heard(server: PageServer, pcm: bytes, chunk: int = CHUNK, **settings: Any) -> Events:
    """The events of one stream, from `started` to `stopped`."""
    async with socket_of(server) as socket:
        assert (await next_event(socket))["type"] == "ready"
        sending = asyncio.create_task(send_all(socket, pcm, chunk, **settings))
        events = [await next_event(socket)]
        while events[-1]["type"] != "stopped":
            events.append(await next_event(socket))
        await sending
        return events


def words_of(events: Events) -> list[str]:
    return [event["word"] for event in events if event["type"] == "detection"]


@pytest.mark.parametrize("chunk", [997, CHUNK, 200_000])
def test_the_demo_is_heard_wherever_messages_are_cut(chunk: int) -> None:
    published: list[Detection] = []

    async def check() -> None:
        async with served(publish=published.append) as server:
            events = await heard(server, DEMO_PCM, chunk)
        assert words_of(events) == TEN
        found = [event for event in events if event["type"] == "detection"]
        assert found[0].keys() == {"type", "word", "start_s", "end_s", "confidence", "at_s"}
        alone = factory().listener(lambda _: None).listen([read(DEMO, 16000)])
        assert [event["at_s"] for event in found] == pytest.approx([d.at_s for d in alone], abs=0.05), "as in a file"
        assert [event["reason"] for event in events if event["type"] == "rejection"] == ["too long"]
        assert events[-1] == {"type": "stopped", "heard_s": pytest.approx(len(DEMO_PCM) / 2 / DEVICE_HZ, abs=0.01)}

    run(check)
    assert [detection.word for detection in published] == TEN


def test_a_client_chooses_words_and_thresholds() -> None:
    async def check() -> None:
        async with served() as server:
            some = await heard(server, DEMO_PCM, words=["LEFT", "stop", "on"], thresholds={"on": 1.0})
            assert words_of(some) == ["left", "stop"]
            assert some[0]["thresholds"]["on"] == 1.0
            reasons = {event["word"]: event["reason"] for event in some if event["type"] == "rejection"}
            assert reasons["on"] == "unsure"
            assert reasons["yes"] == "not asked for"
            awake = words_of(await heard(server, DEMO_PCM, wake="down"))
            assert awake == ["down", "left", "right", "stop", "go"], "five seconds from the wake word on"
            assert words_of(await heard(server, DEMO_PCM)) == TEN, "the settings of one client are its own"

    run(check)


def test_wrong_settings_leave_the_client_connected() -> None:
    wrong = [{"words": ["computer"]}, {"thresholds": {"yes": 7}}, {"thresholds": {"yes": float("nan")}}]
    wrong += [{"after_talk_s": -1}, {"words": ["yes"], "thresholds": {"computer": 0.5}}, {"wake": "computer"}]

    async def check() -> None:
        async with served() as server, socket_of(server) as socket:
            await next_event(socket)
            for settings in wrong:
                await socket.send(json.dumps({"type": "start", "rate_hz": DEVICE_HZ} | settings))
                assert (await next_event(socket))["type"] == "error", settings
            await send_all(socket, FIRST_WORD)
            assert [(await next_event(socket))["type"] for _ in range(3)] == ["started", "detection", "stopped"]

    run(check)


def test_levels_and_pictures_come_when_they_are_asked_for() -> None:
    events: Events = []

    async def check() -> None:
        async with served() as server, socket_of(server) as socket:
            await next_event(socket)
            await socket.send(json.dumps({"type": "start", "rate_hz": DEVICE_HZ, "levels": True, "pictures": True}))
            for begin in range(0, 4 * DEVICE_HZ, CHUNK):
                await socket.send(DEMO_PCM[begin : begin + CHUNK])
                events.append(await next_event(socket))
                while events[-1]["type"] != "level":
                    events.append(await next_event(socket))

    run(check)
    levels = [event for event in events if event["type"] == "level"]
    assert levels[-1]["at_s"] == pytest.approx(2, abs=0.05)
    assert max(level["dbfs"] for level in levels) > -20 > -50 > min(level["dbfs"] for level in levels)
    assert {level["speaking"] for level in levels} == {True, False}
    kinds = [event["type"] for event in events if event["type"] != "level"]
    assert kinds == ["started", "detection", "utterance"], "the word comes before what is drawn of it"
    picture = next(event for event in events if event["type"] == "utterance")
    assert max(picture["scores"], key=picture["scores"].__getitem__) == "yes"
    assert picture["end_s"] - picture["start_s"] == pytest.approx(0.8, abs=0.3)


def test_clients_at_once_hear_all_their_words() -> None:
    async def check() -> None:
        async with served() as server:
            found = await asyncio.gather(*(heard(server, DEMO_PCM, 6 * CHUNK + 2 * n) for n in range(8)))
        assert [words_of(events) for events in found] == [TEN] * 8

    run(check)


def test_the_page_comes_with_headers_that_lock_it_in() -> None:
    async def check() -> None:
        async with served() as server:
            status, headers, body = await asyncio.to_thread(get, server.access.port, "/")
            assert status == 200
            assert b"<title>" in body
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "connect-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert (await asyncio.to_thread(get, server.access.port, "/etc/passwd"))[0] == 404
            assert (await asyncio.to_thread(get, server.access.port, "/../../cli.py"))[0] == 404
            assert (await asyncio.to_thread(get, server.access.port, "/", "evil.example"))[0] == 421

    run(check)


def get(port: int, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def test_the_page_asks_nothing_of_the_network() -> None:
    from importlib.resources import files

    page = files("speech.serve").joinpath("page.html").read_text("utf-8")
    assert "//" in page, "the check below would find nothing"
    for reference in ("http:", "https:", "src=", "@import", "url("):
        assert [line for line in page.splitlines() if reference in line] == []


def is_refused(status: int) -> Any:
    return pytest.raises(InvalidStatus, match=str(status))


def test_pages_from_elsewhere_are_refused() -> None:
    async def check() -> None:
        async with served() as server:
            port = server.access.port
            for origin in ("https://evil.example", "null", f"http://localhost:{port + 1}", f"https://127.0.0.1:{port}"):
                with is_refused(403):
                    await socket_of(server, origin=origin)
            with is_refused(421):
                await socket_of(server, "evil.example", origin=f"http://evil.example:{port}")
            for path in ("/", "/socket"):
                assert (await asyncio.to_thread(get, port, path, "evil.example"))[0] == 421
            with is_refused(404):
                await connect(f"ws://127.0.0.1:{port}/other")
            for name in ("127.0.0.1", "localhost", "LOCALHOST"):
                async with socket_of(server, name, origin=f"http://{name}:{port}") as socket:
                    assert (await next_event(socket))["type"] == "ready"

    run(check)


def test_beyond_this_machine_a_token_is_needed() -> None:
    async def check() -> None:
        async with served(access=Access("0.0.0.0", 0, "right-token")) as server:
            assert server.url.endswith("/#right-token")
            for more in (
                {},
                {"additional_headers": {"Authorization": "Bearer wrong-token"}},
                {"additional_headers": {"Authorization": "Bearer "}},
                {"subprotocols": ["speech.v1", "token.right-toke"]},
                {"subprotocols": ["right-token"]},
            ):
                with is_refused(401):
                    await socket_of(server, **more)
            for more in (
                {"additional_headers": {"Authorization": "Bearer right-token"}},
                {"subprotocols": ["speech.v1", "token.right-token"]},
            ):
                async with socket_of(server, **more) as socket:
                    assert socket.subprotocol in (None, "speech.v1"), "the token is not sent back"
                    assert (await next_event(socket))["type"] == "ready"
            with is_refused(421):
                await socket_of(server, "evil.example", additional_headers={"Authorization": "Bearer right-token"})

    run(check)


def test_messages_that_break_the_rules_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    start = {"type": "start", "rate_hz": 16000}
    bad: list[str | bytes] = [
        "",
        "x",
        "[]",
        "3",
        "{}",
        '{"type": "actions"}',
        "[" * 100_000,
        b"\0\0",
        '{"type": "stop"}',
    ]
    bad += [json.dumps(start | more) for more in (
        {"rate_hz": None}, {"rate_hz": "16000"}, {"rate_hz": True}, {"rate_hz": 10}, {"rate_hz": 16000.5},
        {"channels": 0}, {"channels": 99}, {"channels": "1"}, {"words": "yes"}, {"words": [3]}, {"words": {"yes": 1}},
        {"thresholds": [0.5]}, {"thresholds": {"yes": "0.5"}}, {"after_talk_s": "1"},
    )]  # fmt: skip

    async def check() -> None:
        async with served() as server:
            for message in bad:
                async with socket_of(server) as socket:
                    await next_event(socket)
                    await socket.send(message)
                    assert (await next_event(socket))["type"] == "error", message
                    with pytest.raises(ConnectionClosed) as closed:
                        await socket.recv()
                    assert closed.value.rcvd is not None
                    assert closed.value.rcvd.code == 1008, message

    run(check)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


def test_a_message_of_10_mb_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with served() as server:
            socket = await socket_of(server)
            await next_event(socket)
            await socket.send(json.dumps({"type": "start", "rate_hz": 48000}))
            await next_event(socket)
            with suppress(ConnectionClosed):
                await socket.send(bytes(10_000_000))
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            # 1009: too big; None where the connection was reset while the rest was still on its way
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
            assert words_of(await heard(server, FIRST_WORD)) == ["yes"]

    run(check)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


RAW = [b"", b"G", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 70_000, b"GET /" + b"a" * 70_000]
RAW += [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n", b"POST /socket HTTP/1.1\r\nContent-Length: 9\r\n\r\n"]


def test_a_thousand_connections_and_half_handshakes_leave_room_for_a_client(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(max_clients=16, handshake_s=1.0)

    async def check() -> None:
        async with served(limits) as server:
            async with socket_of(server) as early:
                await next_event(early)
                opened = []
                for n in range(1000):
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.access.port)
                    with suppress(ConnectionError):
                        writer.write(RAW[n % len(RAW)])
                    opened.append((reader, writer))
                assert len(server.connections) <= 48
                await early.send(json.dumps({"type": "start", "rate_hz": 16000}))
                assert (await next_event(early))["type"] == "started", "who is in is still served"
                for reader, writer in opened:
                    with suppress(ConnectionError):
                        await asyncio.wait_for(reader.read(), 60)
                    writer.close()
            assert words_of(await heard(server, FIRST_WORD)) == ["yes"]

    run(check)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


def test_no_more_clients_than_allowed() -> None:
    async def check() -> None:
        async with served(Limits(max_clients=2)) as server:
            async with socket_of(server) as one, socket_of(server):
                await next_event(one)
                with is_refused(503):
                    await socket_of(server)
            async with socket_of(server) as again:
                assert (await next_event(again))["type"] == "ready"

    run(check)


def test_a_client_without_audio_is_dropped() -> None:
    async def check() -> None:
        async with served(Limits(idle_s=0.3)) as server, socket_of(server) as socket:
            await next_event(socket)
            with pytest.raises(TimeoutError):  # an open page that does not listen stays
                await asyncio.wait_for(socket.recv(), 1)
            await socket.send(json.dumps({"type": "start", "rate_hz": DEVICE_HZ}))
            assert (await next_event(socket))["type"] == "started"
            error = await next_event(socket)
            assert "no audio" in error["message"]
            with pytest.raises(ConnectionClosed):
                await socket.recv()

    run(check)


def test_a_client_that_reads_nothing_is_dropped_and_not_waited_for() -> None:
    async def check() -> None:
        async with served(Limits(send_s=0.5)) as server:
            slow = await socket_of(server, max_queue=1)
            with pytest.raises(ConnectionClosed):
                await ask_without_end(slow)
            assert words_of(await heard(server, FIRST_WORD)) == ["yes"]

    run(check)


async def ask_without_end(socket: ClientConnection) -> None:
    """Each message is answered by an error that names what is wrong at length, and is not read."""
    while True:
        await socket.send(json.dumps({"type": "start", "rate_hz": DEVICE_HZ, "words": ["x" * 100_000]}))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Files with a certificate of this machine, and with its key."""
    path, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2", "-addext",
         "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:*.home.example", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    return path, key


def test_https_with_a_certificate(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    assert names_of(certificate[0]) == ("127.0.0.1", "localhost", "*.home.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))

    async def check() -> None:
        async with served(access=Access("127.0.0.1", 0, is_tls=True), certificate=context) as server:
            port = server.access.port
            assert server.url == f"https://127.0.0.1:{port}/"
            origin = f"https://127.0.0.1:{port}"
            async with connect(f"wss://127.0.0.1:{port}/socket", ssl=trusting, origin=origin) as socket:
                assert (await next_event(socket))["type"] == "ready"
            with is_refused(403):
                await connect(f"wss://127.0.0.1:{port}/socket", ssl=trusting, origin=f"http://127.0.0.1:{port}")

    run(check)


def test_the_names_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Kitchen-Pi")
    here = Access("127.0.0.1", 8765)
    for host in ("localhost", "127.0.0.1:9000", "[::1]:8765"):
        assert here.knows(host), host
    for host in ("evil.example", "192.168.1.7", "kitchen-pi", "", "[::", "127.0.0.1:80.evil.example", "a@localhost"):
        assert not here.knows(host), host
    wide = Access("0.0.0.0", 8765, "token", names=("speech.example.org:444", "*.home.arpa"))
    for host in ("localhost", "192.168.1.7:99", "kitchen-pi", "kitchen-pi.fritz.box", "kitchen-pi.lan:80",
                 "speech.example.org", "ears.home.arpa"):  # fmt: skip
        assert wide.knows(host), host
    for host in ("evil.example", "home.arpa", "a.b.home.arpa", "x.speech.example.org", "kitchen-pi2"):
        assert not wide.knows(host), host
    assert wide.url == "http://speech.example.org:444/#token"
    assert replace(wide, names=()).url == "http://Kitchen-Pi:8765/#token"


def test_only_a_trusted_proxy_says_which_host_and_scheme_were_asked_for() -> None:
    behind = Access("127.0.0.1", 0, names=("speech.example.org",), base_path="/speech", proxies=Machines(["127.0.0.1"]))
    forwarded = {"X-Forwarded-Host": "speech.example.org", "X-Forwarded-Proto": "https"}
    origin = "https://speech.example.org"

    async def check() -> None:
        for access in (behind, replace(behind, proxies=Machines(["192.0.2.1"])), replace(behind, proxies=Machines([]))):
            async with served(access=access) as server:
                port = server.access.port
                for path, status in (("/speech/", 200), ("/speech", 307), ("/speech/other", 404), ("/", 200)):
                    assert (await asyncio.to_thread(get, port, path))[0] == status
                address = f"ws://127.0.0.1:{port}/speech/socket"
                if access is behind:
                    async with connect(address, origin=origin, additional_headers=forwarded) as socket:
                        assert (await next_event(socket))["type"] == "ready"
                    evil = forwarded | {"X-Forwarded-Host": "evil.example"}
                    with is_refused(421):
                        await connect(address, origin="https://evil.example", additional_headers=evil)
                    with is_refused(403):
                        await connect(address, origin=origin.replace("https", "http"), additional_headers=forwarded)
                else:
                    with is_refused(403):
                        await connect(address, origin=origin, additional_headers=forwarded)

    run(check)


def test_an_error_reaches_a_client_that_is_still_sending() -> None:
    async def check() -> None:
        async with served(Limits(send_s=1.0)) as server, socket_of(server) as socket:
            await next_event(socket)
            with suppress(ConnectionClosed):
                for _ in range(100):
                    await socket.send(bytes(100_000))  # before it has started a stream
            assert "audio before" in (await next_event(socket))["message"]

    run(check)


def test_this_machine_is_told_from_others() -> None:
    for host in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "localhost"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "192.168.1.7", "localhost.evil.example", "::", ""):
        assert not is_loopback(host), host


def test_machines_by_address_network_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, said = Machines(["192.168.1.0/24", "fd00::5", "ha.local"]), list[str]()
    for address in ("192.168.1.7", "::ffff:192.168.1.7", "fd00::5"):
        assert address in machines
    for address in ("192.168.2.7", "::ffff:10.0.0.1", "fd00::6", "fe80::1%eth0", "127.0.0.1"):
        assert address not in machines
    found: list[str] = []

    async def look_up(*_: object, **__: object) -> list[Any]:
        if not found:
            raise OSError("no such name")
        return [(None, None, None, None, (address, 0)) for address in found]

    async def check() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        monkeypatch.setattr("speech.serve.security.RESOLVE_S", 0.01)
        await machines.look_up(said.append)
        assert "ha.local" in said.pop()
        looking = asyncio.create_task(machines.keep_looking_up(said.append))
        for address in ("10.0.0.5", "fd00::7"):
            found[:] = [address]
            while address not in machines:
                await asyncio.sleep(0.01)
        assert "10.0.0.5" not in machines, "it has another address now"
        found.clear()
        await asyncio.sleep(0.05)
        assert "fd00::7" in machines, "an address is kept while the name is not found"
        looking.cancel()

    run(check)
    for wrong in ("192.168.1.300", "1.2.3", "x/y", "192.168.1.7/99", "", "a b"):
        with pytest.raises(ConfigError, match="--allow expects"):
            Machines([wrong])
