"""A word is taught by a client: its stream becomes recordings, and these a word that all clients may ask for."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from speech.activity import ListenerConfig
from speech.audio import Block
from speech.errors import BundleError, ConfigError
from speech.forecast import Forecast, forecast
from speech.own_words import OwnWords
from speech.recognizer import Recognizer
from speech.serve.streams import Decoder, PcmFormat, level_dbfs
from speech.teach import Collector, check_free
from speech.teaching import Fault, takes

FEWEST, MOST = 1, 20
"""Recordings that a client may ask for."""


@dataclass(frozen=True)
class Recorded:
    """One utterance of a lesson."""

    n: int
    """Recordings so far that are alike."""
    wanted: int
    fault: Fault | None
    """Why this one does not count."""


class Lesson:
    """The stream of a client that teaches a word.

    Args:
        recognizer: which learns it.
        word: its name.
        wanted: recordings, `FEWEST`..`MOST`.
        pcm: what the client sends.
    Raises:
        BundleError: the bundle can't learn words.
        ConfigError: a name that can't be one, or another number of recordings.
    """

    def __init__(self, recognizer: Recognizer, word: str, wanted: int, pcm: PcmFormat) -> None:
        if not FEWEST <= wanted <= MOST:
            raise ConfigError(f"{wanted} recordings; it takes {FEWEST} to {MOST}")
        _ = recognizer.similarity  # raises when there is none
        self.word, self.wanted, self.is_over = check_free(word, recognizer), wanted, False
        self._recognizer, self._collector = recognizer, Collector(recognizer)
        self._decoder = Decoder(pcm, recognizer.info.sample_rate_hz)
        self._blocks: deque[Block] = deque()
        self._takes = takes(self._handed_on(), ListenerConfig())
        self.level_dbfs, self.heard_s = level_dbfs(self._decoder.decode(b"")), 0.0

    def _handed_on(self) -> Iterator[Block]:
        while True:
            yield self._blocks.popleft()

    def feed(self, data: bytes) -> list[Recorded]:
        """The utterances that end in the next bytes."""
        block = self._decoder.decode(data)
        self.level_dbfs = level_dbfs(block)
        self.heard_s += len(block) / self._recognizer.info.sample_rate_hz
        self._blocks.append(block)
        found: list[Recorded] = []
        for take in self._takes:
            if take is None:  # the block has been heard
                break
            if not self.is_over:
                fault = self._collector.take(take)
                found.append(Recorded(len(self._collector.recordings), self.wanted, fault))
                self.is_over = found[-1].n >= self.wanted
        return found

    def learn(self) -> Forecast:
        """Learn the word, keep it, and hear it from now on; what to expect of it.

        Raises:
            ConfigError: it can't be written.
        """
        recognizer = self._recognizer
        own = own_words(recognizer)  # a copy: others are being heard with the words that there are
        word = own.add(self.word, self._collector.recordings, recognizer.similarity, recognizer.embed)
        found = forecast(word, self._collector.recordings, own, recognizer)
        recognizer.hear_also(own)
        return found


def own_words(recognizer: Recognizer) -> OwnWords:
    """The words that have been taught, as they lie in their folder."""
    assert recognizer.own is not None, "see can_learn"
    return OwnWords.load(recognizer.own.folder)


def forget(recognizer: Recognizer, word: str) -> None:
    """Remove a taught word and its recordings.  Raises ConfigError when there is none."""
    own = own_words(recognizer)
    own.forget(word)
    recognizer.hear_also(own)


def can_learn(recognizer: Recognizer) -> bool:
    """Whether words can be taught: not to a bundle that hears sequences, and not with --no-own."""
    if recognizer.own is None:
        return False
    try:
        _ = recognizer.similarity
    except BundleError:
        return False
    return True
