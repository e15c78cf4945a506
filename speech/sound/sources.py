"""Standard input as a stream, and streams that are paced or limited in time."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from speech.errors import AudioError, tell
from speech.sound.containers import RawFormat
from speech.sound.files import Block, Recording, open_stream


def standard_input(raw: RawFormat, sniff: bool = True, tell: Callable[[str], None] = tell) -> Recording:
    """Open standard input: a container, identified by its first bytes, or raw samples.

    Args:
        raw: format of samples without a header.
        sniff: look for a container.
        tell: takes one line if the stream must be read to its end first.
    Raises:
        AudioError: it is closed, empty, or a container that can't be read.
    """
    if sys.stdin is None:
        raise AudioError("standard input is closed")
    descriptor = sys.stdin.fileno()
    return open_stream(lambda n_bytes: os.read(descriptor, n_bytes), "standard input", raw, sniff, tell)


def number_or_name(text: str | None) -> int | str | None:
    """Parse how a user named a device: digits are its number."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else text


def paced(blocks: Iterable[Block], rate_hz: int) -> Iterator[Block]:
    """Yield each block when a microphone would have recorded it."""
    begin, given = time.monotonic(), 0
    for block in blocks:
        given += len(block)
        time.sleep(max(0.0, begin + given / rate_hz - time.monotonic()))
        yield block


def limited(blocks: Iterable[Block], seconds: float | None, rate_hz: int) -> Iterator[Block]:
    """Yield the first `seconds` of a stream; all of it for None.

    An empty block, from a source that waits, ends the stream when the time has passed on the clock.
    """
    if seconds is None or math.isinf(seconds):
        yield from blocks
        return
    left, end_s = round(seconds * rate_hz), time.monotonic() + seconds
    for block in blocks:
        if not len(block) and time.monotonic() > end_s:
            return
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
