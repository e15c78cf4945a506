"""Detections on a real broker."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiomqtt", reason="needs the extra `serve`")

import aiomqtt

from speech.errors import ConfigError
from speech.results import Detection
from speech.serve.mqtt import Broker, Publisher

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
TIMEOUT_S = 30.0
LEFT = Detection("left", 1.23456, 1.6, 0.98765, 1.9)

needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """A broker of the test's own, that can be ended and started again at the same port."""

    def __init__(self, folder: Path, settings: str = "allow_anonymous true") -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{settings}\nuser root\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()


def run(check: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(check(), TIMEOUT_S))


@asynccontextmanager
async def subscribed(port: int, **more: str) -> AsyncIterator[aiomqtt.Client]:
    """A reader of everything, as soon as the broker is up."""
    while True:
        try:
            async with aiomqtt.Client("127.0.0.1", port, **more) as client:
                await client.subscribe("#", qos=1)
                yield client
                return
        except aiomqtt.MqttError:
            await asyncio.sleep(0.1)


async def next_message(client: aiomqtt.Client) -> tuple[str, str]:
    message = await anext(client.messages)
    assert isinstance(message.payload, bytes)
    return str(message.topic), message.payload.decode()


@asynccontextmanager
async def connected(publisher: Publisher, reported: list[str]) -> AsyncIterator[None]:
    async with publisher:
        while not any("connected to" in line for line in reported):
            await asyncio.sleep(0.05)
        yield


@needs_broker
def test_a_detection_arrives_as_json_prints_it(mosquitto: Mosquitto) -> None:
    reported: list[str] = []

    async def check() -> None:
        publisher = Publisher(Broker(f"127.0.0.1:{mosquitto.port}"), reported.append)
        async with subscribed(mosquitto.port) as reader, connected(publisher, reported):
            publisher(LEFT)
            topic, payload = await next_message(reader)
            assert topic == "speech/left"
            assert json.loads(payload) == {
                "word": "left", "start_s": 1.235, "end_s": 1.6, "confidence": 0.988, "at_s": 1.9
            }  # fmt: skip

    run(check)


@needs_broker
def test_what_is_said_while_the_broker_is_away_is_dropped_and_later_words_arrive(mosquitto: Mosquitto) -> None:
    reported: list[str] = []

    async def check() -> None:
        publisher = Publisher(Broker(f"127.0.0.1:{mosquitto.port}"), reported.append)
        async with connected(publisher, reported):
            reported.clear()
            mosquitto.stop()
            while not any("trying again" in line for line in reported):
                await asyncio.sleep(0.05)
            for _ in range(1000):
                publisher(LEFT)
            reported.clear()
            mosquitto.start()
            async with subscribed(mosquitto.port) as reader:
                while not any("connected to" in line for line in reported):
                    await asyncio.sleep(0.05)
                publisher(Detection("stop", 1, 2, 0.9, 2))
                assert (await next_message(reader))[0] == "speech/stop"

    run(check)


@needs_broker
def test_a_password_is_given(tmp_path: Path) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    tool = shutil.which("mosquitto_passwd")
    assert tool
    subprocess.run([tool, "-b", "-c", passwords, "robot", "swordfish"], check=True)
    secret.write_text("swordfish\n")
    broker = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    reported: list[str] = []

    async def check() -> None:
        async with subscribed(broker.port, username="robot", password="swordfish") as reader:
            address = f"127.0.0.1:{broker.port}"
            async with Publisher(Broker(address), reported.append):
                while not reported:
                    await asyncio.sleep(0.05)
                assert "authori" in reported[0].lower(), reported
            reported.clear()
            publisher = Publisher(Broker(address, "home", "robot", secret), reported.append)
            async with connected(publisher, reported):
                publisher(LEFT)
                assert (await next_message(reader))[0] == "home/left"

    try:
        run(check)
    finally:
        broker.stop()


def test_a_word_cannot_choose_its_topic() -> None:
    broker = Broker("host")
    assert broker.topic("left") == "speech/left"
    assert broker.topic("a/b+c#d $e") == "speech/a_b_c_d__e"


@pytest.mark.parametrize("address", ["", ":1883", "host:0", "host:70000", "host:x"])
def test_a_strange_broker_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--mqtt"):
        Broker(address)


def test_other_settings_are_checked(tmp_path: Path) -> None:
    for prefix in ("", "a/#", "+", "/a", "$SYS"):
        with pytest.raises(ConfigError, match="--mqtt-prefix"):
            Broker("host", prefix)
    with pytest.raises(ConfigError, match="--mqtt-user"):
        Broker("host", password_file=tmp_path)
    with pytest.raises(ConfigError, match="directory"):
        _ = Broker("host", user="robot", password_file=tmp_path).password
    assert Broker("host", is_tls=True).host_and_port == ("host", 8883)
    assert Broker("fd00::1").host_and_port != ("fd00", 1)
