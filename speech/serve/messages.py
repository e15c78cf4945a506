"""Messages from a client of the WebSocket."""

import json
from dataclasses import dataclass
from typing import Any

from speech.errors import SpeechError
from speech.serve.streams import PcmFormat, Settings

TIMES = 5
"""Default number of recordings of a word."""


class ClientError(SpeechError):
    """A client sent something unsupported; it gets the error and is disconnected."""


@dataclass(frozen=True)
class Start:
    """`{"type": "start", ...}`: a new stream begins at time 0."""

    pcm: PcmFormat
    settings: Settings
    levels: bool
    """Whether the client wants the level of the audio, about once per message."""
    pictures: bool
    """Whether the client wants, for each utterance, the data that the page draws."""


@dataclass(frozen=True)
class Teach:
    """`{"type": "teach", ...}`: the following utterances are recordings of a word."""

    pcm: PcmFormat
    word: str
    times: int
    """Number of recordings."""


@dataclass(frozen=True)
class Forget:
    """`{"type": "forget", ...}`: remove an own word and its recordings."""

    word: str


def parse_message(text: str) -> Start | Teach | Forget | None:
    """Parse a text message; None for `{"type": "stop"}`, the end of a stream.

    Raises:
        ClientError: not a valid message.
        AudioError: an unsupported rate or number of channels.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError("text messages must be JSON") from error
    kind = message.get("type") if isinstance(message, dict) else None
    if kind == "stop":
        return None
    if kind == "start":
        return parse_start(message)
    if kind not in ("teach", "forget"):
        raise ClientError('a text message must have the "type" "start", "stop", "teach" or "forget"')
    word, times = message.get("word"), message.get("times", TIMES)
    if not isinstance(word, str) or type(times) is not int:
        raise ClientError('"word" must be a string and "times" an integer')
    return Forget(word) if kind == "forget" else Teach(format_of(message), word, times)


def parse_start(message: dict[str, Any]) -> Start:
    """Parse a start message.  Raises as `parse_message`."""
    words, thresholds, after_talk_s = (message.get(name) for name in ("words", "thresholds", "after_talk_s"))
    if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ClientError('"words" must be a list of words')
    if thresholds is not None and not (isinstance(thresholds, dict) and all(map(is_number, thresholds.values()))):
        raise ClientError('"thresholds" must give a number for each word')
    if after_talk_s is not None and not is_number(after_talk_s):
        raise ClientError('"after_talk_s" must be a number')
    settings = Settings(words, thresholds, after_talk_s)
    return Start(format_of(message), settings, message.get("levels") is True, message.get("pictures") is True)


def format_of(message: dict[str, Any]) -> PcmFormat:
    return PcmFormat(message.get("rate_hz"), channels=message.get("channels", 1))  # type: ignore[arg-type]


def is_number(value: object) -> bool:
    return type(value) in (int, float)
