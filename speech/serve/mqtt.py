"""Publishes detections to an MQTT broker, and tells Home Assistant about them."""

import json
import platform
import re
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from speech import __version__
from speech.errors import ConfigError
from speech.results import Detection, as_dict
from speech.settings import read_text

PORT, TLS_PORT = 1883, 8883
KEEPALIVE_S = 15
"""After 1.5 times this without a sign of life the broker declares the server offline."""
RECONNECT_S, MOST_RECONNECT_S = 1, 30
FAREWELL_S = 2.0
"""Longest wait for the broker to confirm that the server is offline."""
DISCOVERY_PREFIX = "homeassistant"
"""Where Home Assistant looks for devices, unless it is configured otherwise."""
NAME = "speech-commands-offline"
SPECIAL = re.compile(r"[/+#$\s\0]")
"""Characters that have a meaning in topics, and spaces."""


@dataclass(frozen=True)
class Broker:
    """Where and how to publish.

    Raises:
        ConfigError: an invalid address, a prefix that can't begin a topic, or a password file without a user.
    """

    address: str
    """Host, host:port, or either as mqtt:// or mqtts://; an IPv6 address may stand in brackets."""
    prefix: str = "speech"
    """First part of the topics."""
    user: str | None = None
    password_file: Path | None = None
    """Its first line is the password."""
    is_tls: bool = False

    def __post_init__(self) -> None:
        _ = self.host_and_port
        if not self.prefix or set(self.prefix) & set("+#\0") or self.prefix.startswith(("/", "$")):
            raise ConfigError(f"--mqtt-prefix {self.prefix!r} can't begin a topic")
        if self.password_file and not self.user:
            raise ConfigError("--mqtt-password-file needs --mqtt-user")

    @property
    def encrypts(self) -> bool:
        return self.is_tls or self.address.startswith("mqtts://")

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host without brackets, and port 1..65535."""
        place = re.sub("^mqtts?://", "", self.address)
        try:
            url = urlsplit(f"//[{place}]" if place.count(":") > 1 and place[0] != "[" else f"//{place}")
            host, port = url.hostname or "", url.port or (TLS_PORT if self.encrypts else PORT)
            host.encode("idna")
            if not host or url.port == 0 or url.path or "@" in place:
                raise ValueError
        except ValueError as error:  # UnicodeError is one
            raise ConfigError(f"--mqtt expects HOST, HOST:PORT or mqtt://HOST:PORT, got {self.address!r}") from error
        return host, port

    @property
    def password(self) -> str | None:
        """The password, if there is one.  Raises ConfigError when the file can't be read."""
        if self.password_file is None:
            return None
        return read_text(self.password_file).partition("\n")[0].strip()

    def topic(self, word: str) -> str:
        """Topic of a word; `SPECIAL` characters become underscores."""
        return f"{self.prefix}/{SPECIAL.sub('_', word)}"


class Publisher:
    """Publishes detections from a thread of its own while it is open, as a context manager; reconnects by itself.

    A late command is worse than a lost one: detections are sent once (QoS 0) and not retained, and those from the
    time without a broker are dropped.  What describes the server is retained: whether it is online, which the broker
    changes when the connection breaks, and the words, in the format of Home Assistant's discovery.

    Args:
        broker: where to publish.
        server: name of this server among those of the machine, such as "page".
        words: the words that may be detected.
        tell: takes messages about the connection, from another thread.
    """

    def __init__(self, broker: Broker, server: str, words: Sequence[str], tell: Callable[[str], None]) -> None:
        self._broker, self._tell, self._words = broker, tell, list(words)
        machine = platform.node() or "unknown"
        self._id = re.sub(r"[^\w-]", "_", f"speech-{machine}-{server}", flags=re.ASCII)
        self._about = f"Speech commands, {machine}, {server}"
        self._availability, self._events = (f"{broker.prefix}/{self._id}/{name}" for name in ("availability", "event"))
        self._is_away = self._is_closed = False
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_connect_fail = lambda *_: self._lost(str(sys.exc_info()[1]))
        self._client.will_set(self._availability, "offline", qos=1, retain=True)
        self._client.reconnect_delay_set(RECONNECT_S, MOST_RECONNECT_S)
        if broker.user:
            self._client.username_pw_set(broker.user, broker.password)
        if broker.encrypts:
            self._client.tls_set_context(ssl.create_default_context())

    @property
    def discovery(self) -> dict[str, Any]:
        """An event entity with a device, as https://www.home-assistant.io/integrations/event.mqtt describes it."""
        return {
            "name": "Command",
            "unique_id": self._id,
            "state_topic": self._events,
            "event_types": self._words,
            "availability_topic": self._availability,
            "device": {"identifiers": [self._id], "name": self._about, "model": NAME, "sw_version": __version__},
            "origin": {"name": NAME, "sw_version": __version__},
        }

    def __enter__(self) -> "Publisher":
        self._client.connect_async(*self._broker.host_and_port, keepalive=KEEPALIVE_S)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True  # if the thread is just connecting, it ends after that
        with suppress(RuntimeError, ValueError):  # the connection is lost now
            if self._client.is_connected():
                self._client.publish(self._availability, "offline", qos=1, retain=True).wait_for_publish(FAREWELL_S)
        self._client.disconnect()

    def __call__(self, detection: Detection) -> None:
        """Publish a detection; returns at once."""
        if self._client.is_connected():
            if detection.word not in self._words:  # taught by another program
                self.announce([*self._words, detection.word])
            found = as_dict(detection)
            self._client.publish(self._broker.topic(detection.word), json.dumps(found))
            self._client.publish(self._events, json.dumps({"event_type": detection.word} | found))

    def announce(self, words: Sequence[str]) -> None:
        """From now on these words may be detected."""
        self._words = list(words)
        if self._client.is_connected():
            topic = f"{DISCOVERY_PREFIX}/event/{self._id}/config"
            self._client.publish(topic, json.dumps(self.discovery), qos=1, retain=True)

    def _on_connect(self, client: Client, _: Any, __: ConnectFlags, reason: ReasonCode, ___: Any) -> None:
        if reason.is_failure:
            self._lost(str(reason))
        elif self._is_closed:
            client.disconnect()
        else:
            self.announce(self._words)
            client.publish(self._availability, "online", qos=1, retain=True)
            self._is_away = False
            self._tell(f"MQTT: connected to {self._broker.address}")

    def _on_disconnect(self, _: Client, __: Any, ___: DisconnectFlags, reason: ReasonCode, ____: Any) -> None:
        if not self._is_closed:
            self._lost(str(reason))

    def _lost(self, why: str) -> None:
        if self._is_closed:
            self._client.disconnect()
        elif not self._is_away:
            self._is_away = True
            self._tell(f"MQTT: {self._broker.address}: {why}; trying again")
