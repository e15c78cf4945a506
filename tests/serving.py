"""What the tests of the servers share."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache

from speech.console import DEMO
from speech.recognizer import Recognizer
from speech.serve.streams import ListenerFactory
from speech.sound.files import read

TEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
TIMEOUT_S = 300.0


def run(check: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(check(), TIMEOUT_S))


@cache
def factory(model: str = "commands") -> ListenerFactory:
    return ListenerFactory(Recognizer.load(model))


@cache
def demo_pcm(rate_hz: int) -> bytes:
    return (32767 * read(DEMO, rate_hz)).astype("<i2").tobytes()
