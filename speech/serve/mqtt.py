"""Publishes detections to an MQTT broker, as `speech/<word>`."""

import asyncio
import json
import logging
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiomqtt

from speech.errors import ConfigError
from speech.results import Detection, as_dict
from speech.serve.security import split_port
from speech.settings import read_text

PORT, TLS_PORT = 1883, 8883
MAX_WAITING = 100
"""Most detections that wait for the broker; further ones are dropped."""
RECONNECT_S = 2.0
TIMEOUT_S = 5.0
"""Longest wait for an answer of the broker."""
SPECIAL = re.compile(r"[/+#$\s\0]")
"""Characters that have a meaning in topics, and spaces."""

Publish = Callable[[Detection], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broker:
    """Where and how to publish.

    Raises:
        ConfigError: an invalid port, a prefix that can't begin a topic, or a password file without a user.
    """

    address: str
    """Host, or host:port."""
    prefix: str = "speech"
    """First part of the topics."""
    user: str | None = None
    password_file: Path | None = None
    """Its first line is the password."""
    is_tls: bool = False

    def __post_init__(self) -> None:
        host, port = self.host_and_port
        if not host or not 0 < port < 65536:
            raise ConfigError(f"--mqtt expects HOST or HOST:PORT, got {self.address!r}")
        if not self.prefix or set(self.prefix) & set("+#\0") or self.prefix.startswith(("/", "$")):
            raise ConfigError(f"--mqtt-prefix {self.prefix!r} can't begin a topic")
        if self.password_file and not self.user:
            raise ConfigError("--mqtt-password-file needs --mqtt-user")

    @property
    def host_and_port(self) -> tuple[str, int]:
        return split_port(self.address, TLS_PORT if self.is_tls else PORT)

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
    """Publishes detections while it is open, as a context manager; reconnects when the broker is away.

    A late command is worse than a lost one: detections are sent once (QoS 0) and not retained, and those from the
    time without a broker are dropped.

    Args:
        broker: where to publish.
        tell: takes messages about the connection.
    """

    def __init__(self, broker: Broker, tell: Callable[[str], None]) -> None:
        self._broker, self._tell, self._password = broker, tell, broker.password
        self._waiting: asyncio.Queue[Detection] = asyncio.Queue(MAX_WAITING)

    async def __aenter__(self) -> "Publisher":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def __call__(self, detection: Detection) -> None:
        """Queue a detection for publishing; returns at once."""
        with suppress(asyncio.QueueFull):
            self._waiting.put_nowait(detection)

    async def _run(self) -> None:
        is_away = False
        while True:
            try:
                async with self._connect() as client:
                    self._tell(f"MQTT: connected to {self._broker.address}")
                    is_away = False
                    while not self._waiting.empty():
                        self._waiting.get_nowait()
                    await self._forward(client)
            except aiomqtt.MqttError as error:
                if not is_away:
                    self._tell(f"MQTT: {self._broker.address}: {error}; trying again")
                is_away = True
                await asyncio.sleep(RECONNECT_S)

    def _connect(self) -> aiomqtt.Client:
        host, port = self._broker.host_and_port
        return aiomqtt.Client(
            host,
            port,
            username=self._broker.user,
            password=self._password,
            timeout=TIMEOUT_S,
            tls_context=ssl.create_default_context() if self._broker.is_tls else None,
        )

    async def _forward(self, client: aiomqtt.Client) -> None:
        """Publish until the connection breaks, which only a reader notices."""
        tasks = [asyncio.create_task(self._publish(client)), asyncio.create_task(read_on(client))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self, client: aiomqtt.Client) -> None:
        while True:
            detection = await self._waiting.get()
            await client.publish(self._broker.topic(detection.word), json.dumps(as_dict(detection)))


async def read_on(client: aiomqtt.Client) -> None:
    """Read, without subscribing to anything, until the connection breaks and MqttError is raised."""
    async for _ in client.messages:
        pass
