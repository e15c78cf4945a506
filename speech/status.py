"""Output on stderr: lines, and on a terminal a status line below them that is redrawn in place."""

import io
import os
import shutil
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import IO, Any

import numpy as np

from speech.sound.files import Block

REDRAW_S = 0.1
METER_WIDTH = 20
QUIETEST_DB = -60.0
"""Level in dB relative to full scale at which the meter is empty."""
N_WORDS = 4
ERASE = "\r\x1b[K"
LONG_S = 60.0
"""A file at least this long, in seconds, gets a progress bar."""


class Console:
    """Prints lines for the user and draws the status line: audio level and last words.

    Args:
        quiet: omit the status line and information; errors and warnings are still printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._stream, self._quiet = _own_stderr(), quiet
        self._is_live = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()  # actions call `tell` from their own threads
        self._is_drawn, self._drawn_s = False, -float("inf")
        self._words: deque[str] = deque(maxlen=N_WORDS)
        self.sign = ""
        """Text between the meter and the words."""
        self._power, self._n_samples = 0.0, 0
        self._bar: Any = None  # of tqdm, in place of the level meter

    def begin(self, seconds: float | None = None) -> None:
        """A new source begins.

        Args:
            seconds: length of a file that is not played in real time; from `LONG_S` on it gets a progress bar.
        """
        with self._lock:
            self._erase()
            self._bar = None
            if self._is_live and seconds and seconds >= LONG_S:
                self._bar = _bar(seconds, self._stream)

    def tell(self, text: str) -> None:
        """Print a line, even if `quiet`; may be called from any thread."""
        with self._lock:
            self._erase()
            self._write(text + "\n")

    def inform(self, text: str) -> None:
        """Print a line unless `quiet`."""
        if not self._quiet:
            self.tell(text)

    def note(self, text: str) -> None:
        """Add a detection or a rejection to the words in the status line."""
        self._words.append(text)

    def clear(self) -> None:
        """Erase the status line: before something is printed on stdout, or at the end."""
        with self._lock:
            self._erase()

    def heard(self, block: Block, heard_s: float = 0.0) -> None:
        """Redraw the status line, at most every `REDRAW_S`.

        Args:
            block: the next samples (time,); empty while waiting for the device.
            heard_s: their end in seconds since the source began; the bar of a long file shows it.
        """
        if not self._is_live:
            return
        if self._bar is not None:
            with self._lock:
                self._is_drawn |= bool(self._bar.update(heard_s - self._bar.n))
            return
        self._power += float(np.square(block).sum())
        self._n_samples += len(block)
        now_s = time.monotonic()
        if now_s - self._drawn_s < REDRAW_S:
            return
        with self._lock:
            text = "  ".join([meter(self._power, self._n_samples), *filter(None, [self.sign]), *self._words])
            self._write(ERASE + text[: shutil.get_terminal_size().columns - 1])
            self._is_drawn = True
        self._drawn_s, self._power, self._n_samples = now_s, 0.0, 0

    def _erase(self) -> None:
        if self._is_drawn:
            self._write(ERASE)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            self._stream.write(text)
            self._stream.flush()


def _bar(seconds: float, stream: IO[str]) -> Any:
    from tqdm import tqdm  # imported only when a bar is needed

    tqdm.monitor_interval = 0  # no monitor thread: it would draw between two lines
    shape = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    return tqdm(total=seconds, file=stream, disable=None, leave=False, bar_format=shape, delay=REDRAW_S)


def meter(power: float, n_samples: int) -> str:
    """A bar and the level in dB relative to full scale.

    Args:
        power: sum of squares of the samples.
        n_samples: their number; 0: waiting for the device.
    """
    if not n_samples:
        return f"[{'waiting':^{METER_WIDTH}}]       "
    level_db = 10 * np.log10(max(power / n_samples, 10 ** (QUIETEST_DB / 10)))
    filled = round(METER_WIDTH * (1 - level_db / QUIETEST_DB))
    return f"[{'#' * filled:<{METER_WIDTH}}] {level_db:3.0f} dB"


def settle_streams() -> None:
    """Make standard output accept any text, and replace closed standard streams with the null device.

    Otherwise a file opened later could get the descriptor of a closed stderr, and messages would end up in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a window without a console
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may contain characters that this encoding lacks


def _own_stderr() -> IO[str]:
    """stderr through a copy of file descriptor 2, which `sound.devices` redirects at times to silence libraries."""
    with suppress(OSError, ValueError):
        if sys.stderr.fileno() == 2:
            return open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", closefd=True)
    return sys.stderr
