"""What is told on stderr: lines, and on a terminal a status line below them that is redrawn in place."""

import os
import shutil
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import IO

import numpy as np

from speech.audio import Block

REDRAW_S = 0.1
METER_WIDTH = 20
QUIETEST_DB = -60.0
"""Level of an empty meter, relative to full scale."""
N_WORDS = 4
ERASE = "\r\x1b[K"


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

    def heard(self, block: Block) -> None:
        """Redraw the status line when it is time to; no samples mean that the device is waited for."""
        if not self._is_live:
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


def meter(power: float, n_samples: int) -> str:
    """A bar and the level in dB relative to full scale of samples with that sum of squares."""
    if not n_samples:
        return f"[{'waiting':^{METER_WIDTH}}]       "
    level_db = 10 * np.log10(max(power / n_samples, 10 ** (QUIETEST_DB / 10)))
    filled = round(METER_WIDTH * (1 - level_db / QUIETEST_DB))
    return f"[{'#' * filled:<{METER_WIDTH}}] {level_db:3.0f} dB"


def _own_stderr() -> IO[str]:
    """stderr, reached past file descriptor 2: `speech.microphone` takes that away from the sound libraries at times."""
    with suppress(OSError, ValueError):
        if sys.stderr.fileno() == 2:
            return open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", closefd=True)
    return sys.stderr
