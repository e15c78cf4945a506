"""What can go wrong for a user, each told in one line without a traceback."""

import sys
from collections.abc import Callable
from contextlib import suppress


class SpeechError(Exception):
    """Base of every error that this package raises on purpose; the message is one line for a person."""


class AudioError(SpeechError):
    """A recording can't be read, or holds no usable audio."""


class BundleError(SpeechError):
    """A file is not a bundle that this version can play."""


class ConfigError(SpeechError, ValueError):
    """A setting is out of range or contradicts another."""


class DataError(SpeechError):
    """Training data is missing or not laid out as expected."""


class DeviceError(SpeechError):
    """No sound device, or one that can't be used."""


def tell(text: str) -> None:
    """One line on stderr, where there is one: a program without a terminal may have none."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def told(run: Callable[[], None]) -> int:
    """The exit status of a command: 0, or 1 when it failed for a reason that stderr then gives in one line."""
    try:
        run()
    except (SpeechError, OSError) as error:
        tell(f"error: {error}")
        return 1
    return 0
