"""What is told on stderr: lines, and on a terminal a status line below them that is redrawn in place."""

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

from speech.audio import Block

REDRAW_S = 0.1
METER_WIDTH = 20
QUIETEST_DB = -60.0
"""Level of an empty meter, relative to full scale."""
N_WORDS = 4
ERASE = "\r\x1b[K"
LONG_S = 60.0
"""A file from this length on gets a bar."""


class Console:
    """Lines for a person, and the status line: level of the audio, last words.

    Args:
        quiet: no status line and no information; errors and warnings stay.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._stream, self._quiet = _own_stderr(), quiet
        self._is_live = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()  # actions tell from threads of their own
        self._is_drawn, self._drawn_s = False, -float("inf")
        self._words: deque[str] = deque(maxlen=N_WORDS)
        self.sign = ""
        """A text between the meter and the words."""
        self._power, self._n_samples = 0.0, 0
        self._bar: Any = None  # of tqdm, in the place of the level

    def begin(self, seconds: float | None = None) -> None:
        """Another source; one that is heard as fast as it goes tells its length and gets a bar."""
        with self._lock:
            self._erase()
            self._bar = None
            if self._is_live and seconds and seconds >= LONG_S:
                self._bar = _bar(seconds, self._stream)

    def tell(self, text: str) -> None:
        """A line that everybody needs to see; from any thread."""
        with self._lock:
            self._erase()
            self._write(text + "\n")

    def inform(self, text: str) -> None:
        """A line that `quiet` leaves out."""
        if not self._quiet:
            self.tell(text)

    def note(self, text: str) -> None:
        """A word that was heard, or why one was not reported, for the status line."""
        self._words.append(text)

    def clear(self) -> None:
        """Take the status line away, before something is printed on stdout or at the end."""
        with self._lock:
            self._erase()

    def heard(self, block: Block, heard_s: float = 0.0) -> None:
        """Redraw the status line when it is time to.

        Args:
            block: the next samples (time,); none mean that the device is waited for.
            heard_s: where in the source they end; what the bar of a long file shows.
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
        with suppress(OSError, ValueError):  # nobody is there to be told
            self._stream.write(text)
            self._stream.flush()


def _bar(seconds: float, stream: IO[str]) -> Any:
    from tqdm import tqdm  # not needed for what is heard at once

    tqdm.monitor_interval = 0  # no thread of its own: it would draw between two lines
    shape = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    return tqdm(total=seconds, file=stream, disable=None, leave=False, bar_format=shape, delay=REDRAW_S)


def meter(power: float, n_samples: int) -> str:
    """A bar and the level in dB relative to full scale of samples with that sum of squares."""
    if not n_samples:
        return f"[{'waiting':^{METER_WIDTH}}]       "
    level_db = 10 * np.log10(max(power / n_samples, 10 ** (QUIETEST_DB / 10)))
    filled = round(METER_WIDTH * (1 - level_db / QUIETEST_DB))
    return f"[{'#' * filled:<{METER_WIDTH}}] {level_db:3.0f} dB"


def settle_streams() -> None:
    """Make a program's standard streams fit for any text, and put nothing in the place of those that are closed.

    A file that is opened later must not get the number of a closed one: what is written to stderr would end up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a window without a console
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text in this encoding


def _own_stderr() -> IO[str]:
    """stderr, reached past file descriptor 2: `speech.microphone` takes that away from the sound libraries at times."""
    with suppress(OSError, ValueError):
        if sys.stderr.fileno() == 2:
            return open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", closefd=True)
    return sys.stderr
