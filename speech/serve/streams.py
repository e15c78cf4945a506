"""The audio of one client -> the decisions of its Listener."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import soxr

from speech.errors import AudioError, ConfigError, SpeechError
from speech.grammar import Grammar
from speech.listener import Listener, thresholds_for
from speech.recognizer import Recognizer
from speech.results import Examined
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig
from speech.settings import match_name
from speech.sound.files import QUIETEST_DBFS, Block, as_mono, check_rate, level_dbfs

DTYPES = {2: "<i2", 4: "<i4"}
"""Bytes per sample -> NumPy type."""
MAX_CHANNELS = 8


class ClientError(SpeechError):
    """A client sent something unsupported; it gets the error and is disconnected."""


@dataclass(frozen=True)
class ListenerFactory:
    """A shared recogniser with the settings of the server, which makes a Listener for each client."""

    recognizer: Recognizer
    chosen: tuple[str, ...] | None = None
    """The words offered; None: all that the recogniser knows, including those that are taught meanwhile."""
    threshold: float | Mapping[str, float] | None = None
    """As `Listener` takes it; may name words that are not known any more."""
    config: ListenerConfig = field(default_factory=ListenerConfig)
    grammar: Grammar | None = None
    wake: str | None = None
    """As `Listener` takes it."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words offered, those that were forgotten left out."""
        known = self.recognizer.thresholds
        return tuple(known) if self.chosen is None else tuple(word for word in self.chosen if word in known)

    def thresholds(
        self, words: Sequence[str] | None = None, changed: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """The words that a client wants, each with the confidence needed.

        Args:
            words: some of the words offered; None: all.
            changed: thresholds in place of the server's.
        Raises:
            ConfigError: words that are not offered, or thresholds out of range.
        """
        offered, usual = self.words, self.threshold
        if isinstance(usual, Mapping):
            usual = {word: value for word, value in usual.items() if word in offered}
        usual = thresholds_for(self.recognizer, offered, usual)
        own = {match_name(word, offered): value for word, value in (changed or {}).items()}
        wanted = [match_name(word, offered) for word in words or offered]
        strange = sorted({*wanted, *own} - set(offered))
        if strange:
            raise ConfigError(f"not offered: {', '.join(strange)}; there are {', '.join(offered)}")
        return thresholds_for(self.recognizer, wanted, {word: own.get(word, usual[word]) for word in wanted})

    def listener(
        self,
        on_utterance: Callable[[Examined], None],
        words: Sequence[str] | None = None,
        changed: Mapping[str, float] | None = None,
        after_talk_s: float | None = None,
        wake: str | None = None,
    ) -> Listener:
        """A new Listener.

        Args:
            on_utterance: called with each utterance and its decision.
            words, changed: as of `thresholds`.
            after_talk_s, wake: in place of the server's; an empty wake word: none is needed.
        Raises:
            ConfigError: settings out of range, or words that are not offered.
        """
        config = self.config if after_talk_s is None else replace(self.config, after_talk_s=after_talk_s)
        wake = self.wake if wake is None else match_name(wake, self.words)
        wanted = self.thresholds(words, changed)
        if wake:
            wanted = self.thresholds([wake], changed) | wanted
        return Listener(
            self.recognizer, tuple(wanted), wanted, config, self.grammar, on_utterance=on_utterance, wake=wake or None
        )


class PcmDecoder:
    """Bytes, cut anywhere -> mono blocks at `SAMPLE_RATE_HZ`, as if decoded in one piece.

    Args:
        rate_hz: of the bytes, which are little-endian signed integers, channels interleaved.
        width: bytes per sample of one channel.
        channels: their number.
    Raises:
        AudioError: an unsupported rate, width or number of channels.
    """

    def __init__(self, rate_hz: int, width: int = 2, channels: int = 1) -> None:
        if not all(type(value) is int for value in (rate_hz, width, channels)):
            raise AudioError(f"rate, width and channels must be whole numbers, got {(rate_hz, width, channels)}")
        check_rate(rate_hz)
        if width not in DTYPES:
            raise AudioError(f"samples of {width} bytes; 2 or 4 are served")
        if not 1 <= channels <= MAX_CHANNELS:
            raise AudioError(f"{channels} channels; 1 to {MAX_CHANNELS} are served")
        self.format = (rate_hz, width, channels)
        self._rest = b""
        self._resampler = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        self.heard_s, self.level_dbfs = 0.0, QUIETEST_DBFS

    def decode(self, data: bytes, is_last: bool = False) -> Block:
        """The next bytes -> (time,) float32; the bytes of an incomplete frame wait for the next call."""
        _, width, channels = self.format
        data = self._rest + data
        n_whole = len(data) - len(data) % (width * channels)
        self._rest = data[n_whole:]
        samples = np.frombuffer(data[:n_whole], DTYPES[width]).reshape(-1, channels)
        mono = as_mono(samples) if len(samples) else np.zeros(0, np.float32)
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono, last=is_last)
        self.heard_s += len(mono) / SAMPLE_RATE_HZ
        self.level_dbfs = level_dbfs(mono)
        return mono


class ClientStream:
    """One stream of one client, with a Listener of its own.

    Args:
        decoder: for the client's audio.
        listener: makes the Listener, given the function that is called with each utterance.
    Raises:
        ConfigError: settings out of range.
    """

    def __init__(self, decoder: PcmDecoder, listener: Callable[[Callable[[Examined], None]], Listener]) -> None:
        self.decoder, self._found = decoder, list[Examined]()
        self._listener = listener(self._found.append)
        self.thresholds = self._listener.thresholds

    @property
    def is_hearing(self) -> bool:
        """Whether an utterance is in progress, as far as is known."""
        return self._listener.is_hearing

    def feed(self, data: bytes) -> list[Examined]:
        """Process the next bytes.  Returns the utterances that end in them, with the decisions."""
        self._found.clear()
        self._listener.feed(self.decoder.decode(data))
        return self._found.copy()

    def finish(self) -> list[Examined]:
        """End the stream.  Returns its last utterances, with the decisions."""
        self._found.clear()
        self._listener.feed(self.decoder.decode(b"", is_last=True))
        self._listener.flush()
        return self._found.copy()
