"""Text messages from a client of the WebSocket."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speech.serve.streams import ClientError

KINDS = ("start", "stop", "teach", "forget")
TIMES = 5
"""Default number of recordings of a word."""


@dataclass(frozen=True)
class Message:
    """A message; the fields that its `type` does not need are ignored."""

    type: str
    """One of `KINDS`: a stream begins at time 0, or ends; the following utterances are recordings of a word; a taught
    word and its recordings are removed."""
    rate_hz: int = 0
    channels: int = 1
    words: Sequence[str] | None = None
    thresholds: Mapping[str, float] | None = None
    after_talk_s: float | None = None
    wake: str | None = None
    """"": no wake word is needed."""
    levels: bool = False
    """Whether the client wants the level of the audio, about once per message."""
    pictures: bool = False
    """Whether the client wants, for each utterance, the data that the page draws."""
    word: str = ""
    times: int = TIMES
    """Number of recordings."""


WHOLE: tuple[Callable[[Any], bool], str] = (lambda value: type(value) is int, "an integer")
SWITCH: tuple[Callable[[Any], bool], str] = (lambda value: type(value) is bool, "true or false")
WORD: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, str), "a word")
NUMBER: tuple[Callable[[Any], bool], str] = (lambda value: type(value) in (int, float), "a number")
CHECKS = {
    "words": (lambda value: isinstance(value, list) and all(map(WORD[0], value)), "a list of words"),
    "thresholds": (lambda value: isinstance(value, dict) and all(map(NUMBER[0], value.values())),
                   "an object with a number for each word"),
} | dict.fromkeys(("rate_hz", "channels", "times"), WHOLE) | dict.fromkeys(("levels", "pictures"), SWITCH) \
  | dict.fromkeys(("wake", "word"), WORD) | {"after_talk_s": NUMBER}  # fmt: skip
"""Field -> what is true of its values, and how that is said."""


def parse_message(text: str) -> Message:
    """Parse a message; null for a field means that it is left out.  Raises ClientError if it is not valid."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError("text messages must be JSON") from error
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in KINDS:
        raise ClientError(f'a text message must be an object whose "type" is one of {", ".join(KINDS)}')
    fields = {name: given[name] for name in CHECKS if given.get(name) is not None}
    for name, value in fields.items():
        is_valid, expected = CHECKS[name]
        if not is_valid(value):
            raise ClientError(f'"{name}" must be {expected}')
    if kind in ("teach", "forget") and not isinstance(given.get("word"), str):
        raise ClientError('"word" must be a word')
    return Message(kind, **fields)
