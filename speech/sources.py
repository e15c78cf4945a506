"""Where the blocks of a stream come from, when, and for how long."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from speech.audio import Block, as_mono, check_rate, resample_stream


def stdin_blocks(stream: IO[bytes], rate_hz: int, to_hz: int) -> Iterator[Block]:
    """Raw 16-bit samples -> blocks, each as soon as it has come."""

    def decoded() -> Iterator[Block]:
        odd = b""
        while data := os.read(stream.fileno(), 4096):
            data = odd + data
            whole = len(data) // 2 * 2
            odd = data[whole:]
            yield as_mono(np.frombuffer(data[:whole], "<i2").astype(np.int16))

    return resample_stream(decoded(), check_rate(rate_hz), to_hz)


def paced(blocks: Iterable[Block], rate_hz: int) -> Iterator[Block]:
    """Hand each block out when a microphone would have recorded it."""
    begin, given = time.monotonic(), 0
    for block in blocks:
        given += len(block)
        time.sleep(max(0.0, begin + given / rate_hz - time.monotonic()))
        yield block


def limited(blocks: Iterable[Block], n_samples: int | None) -> Iterator[Block]:
    """The first `n_samples` of a stream; all of it for None."""
    for block in blocks:
        if n_samples is not None:
            block, n_samples = block[:n_samples], n_samples - len(block)
        yield block
        if n_samples is not None and n_samples <= 0:
            return


def until(blocks: Iterable[Block], seconds: float | None) -> Iterator[Block]:
    """End a stream that is only waiting (empty blocks) after that time; None: never."""
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    for block in blocks:
        if not len(block) and time.monotonic() > end:
            return
        yield block
