"""Errors that a user sees, each as one line without a traceback."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress


class SpeechError(Exception):
    """Base class of all errors that this package raises on purpose; the message is one line for the user."""


class AudioError(SpeechError):
    """A recording can't be read or contains no usable audio."""


class BundleError(SpeechError):
    """A file is not a bundle, or not one that this version can load."""


class ConfigError(SpeechError, ValueError):
    """A setting is out of range or contradicts another."""


class DataError(SpeechError):
    """Training data is missing or not laid out as expected."""


class DeviceError(SpeechError):
    """No sound device, or one that can't be used."""


def describe(error: Exception) -> str:
    """The exception as one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SpeechError) else f"{type(error).__name__}: {text}".rstrip(": ")


def tell(text: str) -> None:
    """Print one line on stderr; does nothing if stderr is closed, as in a program without a terminal."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def exit_status(
    run: Callable[[], int | None],
    report: Callable[[str], None] = tell,
    os_errors: str = "",
    interrupted: Callable[[], int] = lambda: 1,
) -> int:
    """Run a command and report an error as one line.

    Args:
        run: the command; it may return an exit status.
        report: takes the line.
        os_errors: prefix for errors of the operating system, such as "can't serve there".
        interrupted: called after Ctrl-C; returns the exit status.
    Returns:
        0: success, also when the reader of the output has gone; 1: an error; 2: wrong usage.
    """
    try:
        return run() or 0
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:
        drop_stdout()
        return 0
    except ConfigError as error:
        report(f"error: {error}")
        return 2
    except SpeechError as error:
        report(f"error: {error}")
    except OSError as error:
        drop_stdout()
        report(f"error: {os_errors}: {error.strerror or error}" if os_errors else f"error: {error}")
    return 1


def drop_stdout() -> None:
    """Discard unwritten output, so that Python does not try to write it again at exit."""
    with suppress(OSError, ValueError, AttributeError):  # stdout is closed, or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
