"""Teaching by a client: its stream is cut into recordings, and these become a word for all clients."""

from contextlib import suppress
from dataclasses import dataclass

from speech.errors import BundleError, ConfigError
from speech.own.forecast import Forecast, forecast
from speech.own.lesson import Fault, TakeCutter, TeachingSession
from speech.own.words import OwnWords
from speech.recognizer import Recognizer
from speech.serve.streams import PcmDecoder
from speech.settings import normal_name

FEWEST, MOST = 1, 20
"""Bounds of the number of recordings that a client may ask for."""


@dataclass(frozen=True)
class Recorded:
    """One utterance of a lesson."""

    n: int
    """Recordings so far that are alike."""
    wanted: int
    """Recordings needed."""
    fault: Fault | None
    """Why this one does not count, or None."""


class ClientLesson:
    """The stream of a client that teaches a word.

    Args:
        recognizer: the recogniser that learns the word.
        word: name of the word.
        wanted: number of recordings, `FEWEST`..`MOST`.
        decoder: for the client's audio.
    Raises:
        BundleError: the bundle can't learn words.
        ConfigError: an invalid name or number of recordings.
    """

    def __init__(self, recognizer: Recognizer, word: str, wanted: int, decoder: PcmDecoder) -> None:
        if not FEWEST <= wanted <= MOST:
            raise ConfigError(f"{wanted} recordings; it takes {FEWEST} to {MOST}")
        self.decoder, self._recognizer = decoder, recognizer
        self._session = TeachingSession(recognizer, word, wanted)
        self.word, self.wanted, self.is_over = self._session.name, wanted, False
        self._cutter = TakeCutter()

    def feed(self, data: bytes) -> list[Recorded]:
        """Process the next bytes.  Returns the utterances that end in them."""
        found: list[Recorded] = []
        for take in self._cutter.push(self.decoder.decode(data)):
            if not self.is_over:
                fault = self._session.take(take)
                found.append(Recorded(len(self._session.recordings), self.wanted, fault))
                self.is_over = self._session.is_over
        return found

    def learn(self) -> Forecast:
        """Learn and save the word, and recognise it from now on.  Returns its forecast.

        Raises:
            ConfigError: the word can't be saved.
        """
        recognizer = self._recognizer
        self._session.save(_own_words(recognizer))
        recognizer.look_again()
        assert recognizer.own is not None
        return forecast(recognizer.own[self.word], recognizer.own, recognizer)


def forget(recognizer: Recognizer, word: str) -> None:
    """Remove an own word and its recordings.  Raises ConfigError if there is none."""
    _own_words(recognizer).forget(normal_name(word))
    recognizer.look_again()


def _own_words(recognizer: Recognizer) -> OwnWords:
    """A copy, as other clients are using the present words."""
    assert recognizer.own is not None, "see can_learn"
    return OwnWords.load(recognizer.own.folder)


def can_learn(recognizer: Recognizer) -> bool:
    """Whether words can be taught: not to a bundle of sequences, and not with --no-own."""
    with suppress(BundleError):
        return recognizer.own is not None and bool(recognizer.similarity)
    return False
