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


def exit_status(
    run: Callable[[], int | None],
    report: Callable[[str], None] = tell,
    os_errors: str = "",
    interrupted: Callable[[], int] = lambda: 1,
) -> int:
    """Run a command and turn what goes wrong into one line.

    Args:
        run: the command; it may return a status of its own.
        report: takes the line.
        os_errors: what to say before an error of the operating system, such as "can't serve there".
        interrupted: gives the status after Ctrl-C.
    Returns:
        0: fine; 1: something went wrong; 2: wrong usage.
    """
    try:
        return run() or 0
    except KeyboardInterrupt:
        return interrupted()
    except ConfigError as error:
        report(f"error: {error}")
        return 2
    except SpeechError as error:
        report(f"error: {error}")
    except OSError as error:
        report(f"error: {os_errors}: {error.strerror or error}" if os_errors else f"error: {error}")
    return 1
