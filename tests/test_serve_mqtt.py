"""Detections on a real broker, and what Home Assistant finds there."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho", reason="needs the extra `serve`")

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from speech import __version__
from speech.errors import ConfigError
from speech.results import Detection
from speech.serve.mqtt import Broker, Publisher

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
PATIENCE_S = 30.0
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
        self.address = f"127.0.0.1:{self.port}"
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{settings}\nuser root\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()


class Reader:
    """A client that subscribes to some topics."""

    def __init__(self, port: int, topics: str = "#", password: str = "") -> None:
        self._messages: queue.Queue[Any] = queue.Queue()
        self._client = Client(CallbackAPIVersion.VERSION2)
        if password:
            self._client.username_pw_set("robot", password)
        self._client.on_connect = lambda *_: self._client.subscribe(topics, qos=1)
        self._client.on_message = lambda _, __, message: self._messages.put(message)
        ready = queue.Queue[None]()
        self._client.on_subscribe = lambda *_: ready.put(None)
        until(lambda: self._try(port))
        self._client.loop_start()
        ready.get(timeout=PATIENCE_S)

    def _try(self, port: int) -> bool:
        try:
            return self._client.connect("127.0.0.1", port) == 0
        except OSError:
            return False

    def next(self, about: str) -> Any:
        """The next message whose topic contains a text."""
        while True:
            message = self._messages.get(timeout=PATIENCE_S)
            if about in message.topic:
                return message

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def reading(port: int, topics: str = "#", password: str = "") -> Iterator[Reader]:
    reader = Reader(port, topics, password)
    try:
        yield reader
    finally:
        reader.close()


def until(holds: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def publishing(broker: Broker, said: list[str], words: list[str] | None = None) -> Iterator[Publisher]:
    """A publisher that is connected."""
    with Publisher(broker, "page", words or ["left", "stop"], said.append) as publisher:
        until(lambda: any("connected to" in line for line in said))
        yield publisher


@needs_broker
def test_detections_arrive_and_those_while_the_broker_is_away_are_dropped(mosquitto: Mosquitto) -> None:
    said: list[str] = []
    with publishing(Broker(mosquitto.address), said) as publish:
        with reading(mosquitto.port) as reader:
            publish(LEFT)
            expected = {"word": "left", "start_s": 1.235, "end_s": 1.6, "confidence": 0.988, "at_s": 1.9}
            message = reader.next("speech/left")
            assert (json.loads(message.payload), message.retain) == (expected, False)
            assert json.loads(reader.next("/event").payload) == {"event_type": "left"} | expected
        said.clear()
        mosquitto.stop()
        until(lambda: any("trying again" in line for line in said))
        for _ in range(1000):
            publish(LEFT)
        said.clear()
        mosquitto.start()
        with reading(mosquitto.port, "speech/+") as reader:
            until(lambda: any("connected to" in line for line in said))
            publish(Detection("stop", 1, 2, 0.9, 2))
            assert reader.next("speech/").topic == "speech/stop"


# What https://www.home-assistant.io/integrations/event.mqtt and its schema (components/mqtt/event.py, schemas.py) allow
EVENT = {"name": str, "unique_id": str, "state_topic": str, "event_types": list, "availability_topic": str,
         "device": dict, "origin": dict}  # fmt: skip
DEVICE = {"identifiers": list, "name": str, "model": str, "sw_version": str}
ORIGIN = {"name": str, "sw_version": str}


def keeps_to(schema: dict[str, type], given: dict[str, Any]) -> bool:
    return given.keys() == schema.keys() and all(isinstance(given[name], kind) for name, kind in schema.items())


@needs_broker
def test_home_assistant_finds_an_event_entity_and_whether_it_is_online(mosquitto: Mosquitto) -> None:
    said: list[str] = []
    with publishing(Broker(mosquitto.address, "home/ears"), said) as publish:
        with reading(mosquitto.port, "homeassistant/#") as late:
            message = late.next("homeassistant/event/")
            assert message.retain, "whoever comes later is told too"
            config = json.loads(message.payload)
            assert message.topic == f"homeassistant/event/{config['unique_id']}/config"
            assert keeps_to(EVENT, config)
            assert keeps_to(DEVICE, config["device"])
            assert keeps_to(ORIGIN, config["origin"])
            assert config["device"]["sw_version"] == __version__
            assert config["event_types"] == ["left", "stop"]
            publish.announce(["left", "lamp"])
            assert json.loads(late.next("config").payload)["event_types"] == ["left", "lamp"]
        with reading(mosquitto.port, "home/ears/#") as reader:
            online = reader.next("availability")
            assert (online.topic, online.payload, online.retain) == (config["availability_topic"], b"online", True)
            publish(LEFT)
            assert reader.next("event").topic == config["state_topic"]
            publish.__exit__()
            assert reader.next("availability").payload == b"offline"


@needs_broker
def test_a_server_that_is_killed_is_declared_offline(mosquitto: Mosquitto) -> None:
    code = f"""
import time
from speech.serve.mqtt import Broker, Publisher
with Publisher(Broker({mosquitto.address!r}), "page", ["left"], print):
    time.sleep(100)
"""
    with reading(mosquitto.port, "speech/#") as reader:
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        assert reader.next("availability").payload == b"online"
        os.kill(server.pid, signal.SIGKILL)
        server.wait(PATIENCE_S)
        assert reader.next("availability").payload == b"offline"
    with reading(mosquitto.port, "speech/#") as later:
        assert later.next("availability").payload == b"offline"


@needs_broker
def test_a_password_is_given(tmp_path: Path) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    tool = shutil.which("mosquitto_passwd")
    assert tool
    subprocess.run([tool, "-b", "-c", passwords, "robot", "swordfish"], check=True)
    secret.write_text("\ufeffswordfish\n", "utf-8")
    broker = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    said: list[str] = []
    try:
        with reading(broker.port, password="swordfish") as reader:
            with Publisher(Broker(broker.address), "page", ["left"], said.append):
                until(lambda: said)
                assert "authori" in said[0].lower(), said
            said.clear()
            with publishing(Broker(broker.address, "home", "robot", secret), said) as publish:
                publish(LEFT)
                assert reader.next("home/left").payload
    finally:
        broker.stop()


def test_ending_takes_no_time_while_a_broker_refuses() -> None:
    said: list[str] = []
    broker, begun = Broker(f"127.0.0.1:{free_port()}"), time.monotonic()
    for n in range(80):
        with Publisher(broker, "page", ["left"], said.append) as publish:
            publish(LEFT)
            time.sleep(0.002 * (n % 20))
    assert time.monotonic() - begun < 20
    assert any("refused" in line for line in said), said


def test_a_word_cannot_choose_its_topic() -> None:
    broker = Broker("host")
    assert broker.topic("left") == "speech/left"
    assert broker.topic("a/b+c#d $e") == "speech/a_b_c_d__e"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("host", ("host", 1883)), ("host:7", ("host", 7)), ("mqtt://host", ("host", 1883)), ("::1", ("::1", 1883)),
        ("[fd00::1]:7", ("fd00::1", 7)), ("mqtts://host", ("host", 8883)), ("mqtt://[::1]:7", ("::1", 7)),
    ],
)  # fmt: skip
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert Broker(address).host_and_port == expected


@pytest.mark.parametrize(
    "address",
    ["", ":1883", "host:0", "host:70000", "host:x", "my..broker", "http://host", "me:secret@host", "host/topic", "[::"],
)
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
