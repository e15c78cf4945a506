"""What one client sends -> what its Listener makes of it."""

import asyncio
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import soxr

from speech.activity import ListenerConfig
from speech.audio import Block, as_mono, check_rate
from speech.errors import AudioError, ConfigError
from speech.grammar import Grammar
from speech.listener import Listener, thresholds_for
from speech.recognizer import Recognizer
from speech.results import Examined

DTYPES = {2: "<i2", 4: "<i4"}
"""Width of a sample in bytes -> its type."""
MAX_CHANNELS = 8
MAX_THREADS = 4
QUIETEST_DBFS = -90.0
"""Level of digital silence, as it is shown."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """What a client may choose for its stream; None: as the server was started."""

    words: Sequence[str] | None = None
    thresholds: Mapping[str, float] | None = None
    after_talk_s: float | None = None


@dataclass(frozen=True)
class Hearing:
    """What every client is offered: one recogniser, and a Listener for each."""

    recognizer: Recognizer
    chosen: tuple[str, ...] | None = None
    """What may be asked for; None: all that the recogniser knows, with those that are taught while it serves."""
    threshold: float | Mapping[str, float] | None = None
    """As `Listener` takes it."""
    config: ListenerConfig = field(default_factory=ListenerConfig)
    grammar: Grammar | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """What may be asked for."""
        return tuple(self.recognizer.thresholds) if self.chosen is None else self.chosen

    def thresholds(self, settings: Settings) -> dict[str, float]:
        """The words that a client wants, with the confidence from which each counts.

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
        """A new one.  Raises ConfigError for settings out of range."""
        thresholds, config = self.thresholds(settings), self.config
        if settings.after_talk_s is not None:
            config = replace(config, after_talk_s=settings.after_talk_s)
        return Listener(self.recognizer, tuple(thresholds), thresholds, config, self.grammar, examined=examined)


@dataclass(frozen=True)
class PcmFormat:
    """How samples lie in the bytes that a client sends: little-endian signed integers, channels interleaved.

    Raises:
        AudioError: for a rate, width or number of channels that is not served.
    """

    rate_hz: int
    width: int = 2
    """Bytes of a sample."""
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
    """Bytes cut anywhere -> mono blocks at another rate, without seams."""

    def __init__(self, pcm: PcmFormat, to_hz: int) -> None:
        self._pcm, self._rest = pcm, b""
        same = pcm.rate_hz == to_hz
        self._resampler = None if same else soxr.ResampleStream(pcm.rate_hz, to_hz, 1, dtype="float32")

    def decode(self, data: bytes, is_last: bool = False) -> Block:
        """The next bytes -> (time,) float32; the samples of an incomplete frame wait for the next call."""
        data = self._rest + data
        whole = len(data) - len(data) % self._pcm.frame_bytes
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], DTYPES[self._pcm.width]).reshape(-1, self._pcm.channels)
        mono = as_mono(samples) if len(samples) else np.zeros(0, np.float32)
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=is_last)


class Stream:
    """One stream of one client, with a Listener of its own.

    Args:
        pcm: what the client sends.
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
        """Whether somebody is speaking, as far as is known."""
        return self._listener.is_hearing

    def feed(self, data: bytes) -> list[Examined]:
        """The utterances that end in the next bytes, and what is decided about them."""
        block = self._decoder.decode(data)
        self.level_dbfs = level_dbfs(block)
        self._listener.feed(block)
        self.heard_s = self._listener.heard_s
        return self._taken()

    def finish(self) -> list[Examined]:
        """The client has ended the stream: its last utterances."""
        self._listener.feed(self._decoder.decode(b"", is_last=True))
        self.heard_s = self._listener.heard_s
        self._listener.flush()
        return self._taken()

    def _taken(self) -> list[Examined]:
        found = self._found.copy()
        self._found.clear()
        return found


def level_dbfs(block: Block) -> float:
    """RMS level relative to full scale."""
    power = float(np.square(block).mean()) if len(block) else 0.0
    return 10 * math.log10(max(power, 10 ** (QUIETEST_DBFS / 10)))


class Workers:
    """Threads that recognise, so that the event loop goes on; onnxruntime lets go of the interpreter while it works.

    A client has one job at a time, and a job is one message, so that no client waits for more than the others'
    messages.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self._executor = ThreadPoolExecutor(n_threads or min(MAX_THREADS, os.cpu_count() or 1), "recognise")

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
