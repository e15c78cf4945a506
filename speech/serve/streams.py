"""The audio of one client -> the decisions of its Listener."""

import asyncio
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import soxr

from speech.errors import AudioError, ConfigError
from speech.grammar import Grammar
from speech.listener import Listener, thresholds_for
from speech.recognizer import Recognizer
from speech.results import Examined
from speech.segment import ListenerConfig
from speech.sound.files import Block, as_mono, check_rate

DTYPES = {2: "<i2", 4: "<i4"}
"""Bytes per sample -> NumPy type."""
MAX_CHANNELS = 8
MAX_THREADS = 4
QUIETEST_DBFS = -90.0
"""Level that is shown for digital silence."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """A client's settings for its stream; None: the server's own setting."""

    words: Sequence[str] | None = None
    thresholds: Mapping[str, float] | None = None
    after_talk_s: float | None = None


@dataclass(frozen=True)
class Hearing:
    """What every client is offered: a shared recogniser, and a Listener of its own."""

    recognizer: Recognizer
    chosen: tuple[str, ...] | None = None
    """The words offered; None: all that the recogniser knows, including those that are taught meanwhile."""
    threshold: float | Mapping[str, float] | None = None
    """As `Listener` takes it."""
    config: ListenerConfig = field(default_factory=ListenerConfig)
    grammar: Grammar | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words offered."""
        return tuple(self.recognizer.thresholds) if self.chosen is None else self.chosen

    def thresholds(self, settings: Settings) -> dict[str, float]:
        """The words that a client wants, each with the confidence needed.

        Raises:
            ConfigError: words that are not offered, or thresholds out of range.
        """
        offered, changed = self.words, settings.thresholds or {}
        words = settings.words or offered
        strange = sorted({*words, *changed} - set(offered))
        if strange:
            raise ConfigError(f"not offered: {', '.join(strange)}; there are {', '.join(offered)}")
        usual = thresholds_for(self.recognizer, offered, self.threshold)
        return thresholds_for(self.recognizer, words, {word: changed.get(word, usual[word]) for word in words})

    def listener(self, settings: Settings, examined: Callable[[Examined], None]) -> Listener:
        """A new Listener for a client.

        Args:
            examined: called with each utterance and its decision.
        Raises:
            ConfigError: settings out of range.
        """
        thresholds, config = self.thresholds(settings), self.config
        if settings.after_talk_s is not None:
            config = replace(config, after_talk_s=settings.after_talk_s)
        return Listener(self.recognizer, tuple(thresholds), thresholds, config, self.grammar, examined=examined)


@dataclass(frozen=True)
class PcmFormat:
    """Format of a client's audio: little-endian signed integers, channels interleaved.

    Raises:
        AudioError: an unsupported rate, width or number of channels.
    """

    rate_hz: int
    width: int = 2
    """Bytes per sample of one channel."""
    channels: int = 1

    def __post_init__(self) -> None:
        values = (self.rate_hz, self.width, self.channels)
        if not all(type(value) is int for value in values):
            raise AudioError(f"rate, width and channels must be whole numbers, got {values}")
        check_rate(self.rate_hz)
        if self.width not in DTYPES:
            raise AudioError(f"samples of {self.width} bytes; 2 or 4 are served")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise AudioError(f"{self.channels} channels; 1 to {MAX_CHANNELS} are served")

    @property
    def frame_bytes(self) -> int:
        return self.width * self.channels


class Decoder:
    """Bytes, cut anywhere -> mono blocks at another rate, as if decoded in one piece."""

    def __init__(self, pcm: PcmFormat, to_hz: int) -> None:
        self._pcm, self._rest = pcm, b""
        same = pcm.rate_hz == to_hz
        self._resampler = None if same else soxr.ResampleStream(pcm.rate_hz, to_hz, 1, dtype="float32")

    def decode(self, data: bytes, is_last: bool = False) -> Block:
        """The next bytes -> (time,) float32; the bytes of an incomplete frame wait for the next call."""
        data = self._rest + data
        whole = len(data) - len(data) % self._pcm.frame_bytes
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], DTYPES[self._pcm.width]).reshape(-1, self._pcm.channels)
        mono = as_mono(samples) if len(samples) else np.zeros(0, np.float32)
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=is_last)


class Stream:
    """One stream of one client, with a Listener of its own.

    Args:
        hearing: what the client is offered.
        pcm: format of the client's audio.
        settings: the client's choices.
    Raises:
        ConfigError: settings out of range.
    """

    def __init__(self, hearing: Hearing, pcm: PcmFormat, settings: Settings) -> None:
        self._found: list[Examined] = []
        self._listener = hearing.listener(settings, self._found.append)
        self._decoder = Decoder(pcm, hearing.recognizer.info.sample_rate_hz)
        self.thresholds = self._listener.thresholds
        self.heard_s = 0.0
        """Seconds of audio so far."""
        self.level_dbfs = QUIETEST_DBFS
        """Level of the last bytes, relative to full scale."""

    @property
    def is_hearing(self) -> bool:
        """Whether an utterance is in progress, as far as is known."""
        return self._listener.is_hearing

    def feed(self, data: bytes) -> list[Examined]:
        """Process the next bytes.  Returns the utterances that end in them, with the decisions."""
        block = self._decoder.decode(data)
        self.level_dbfs = level_dbfs(block)
        self._listener.feed(block)
        self.heard_s = self._listener.heard_s
        return self._taken()

    def finish(self) -> list[Examined]:
        """End the stream.  Returns its last utterances, with the decisions."""
        self._listener.feed(self._decoder.decode(b"", is_last=True))
        self.heard_s = self._listener.heard_s
        self._listener.flush()
        return self._taken()

    def _taken(self) -> list[Examined]:
        found = self._found.copy()
        self._found.clear()
        return found


def level_dbfs(block: Block) -> float:
    """RMS level in dB relative to full scale, at least `QUIETEST_DBFS`."""
    power = float(np.square(block).mean()) if len(block) else 0.0
    return 10 * math.log10(max(power, 10 ** (QUIETEST_DBFS / 10)))


class Workers:
    """Threads that recognise, so that the event loop is not blocked; onnxruntime releases the GIL while it works.

    A job is one message, and each client has at most one job at a time.  So a client waits for at most one message of
    each other client.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self._executor = ThreadPoolExecutor(n_threads or min(MAX_THREADS, os.cpu_count() or 1), "recognise")

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a thread and await its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
