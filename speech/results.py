"""Types of the results of listening and recognising."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Reason(StrEnum):
    """Why an utterance was rejected."""

    UNSURE = "unsure"
    """A command whose confidence is below its threshold."""
    ANOTHER_WORD = "another word"
    """Speech, but none of the words."""
    NO_WORD = "no word"
    """A noise that the voice activity detector took for speech."""
    TOO_LONG = "too long"
    """Talk: longer than the longest command."""
    AFTER_TALK = "after talk"
    """A command right after talk."""
    NOT_IN_GRAMMAR = "not in the grammar"
    """Words that the grammar does not allow."""
    NOT_ASKED_FOR = "not asked for"
    """A word of the model that is not among the words to report."""
    NO_WAKE_WORD = "no wake word"
    """A command without the wake word just before it."""


@dataclass(frozen=True)
class SpokenWord:
    """A word of a recording or of a stream, with the bounds of its sound or, within a sequence, of its CTC token."""

    word: str
    start_s: float
    """Seconds since the recording or the stream began; the sound of a token may begin earlier."""
    end_s: float
    """End; the sound of a token may end later."""
    confidence: float
    """Posterior of the word, 0..1; of a token: see `speech.sequences.confidences`."""


@dataclass(frozen=True)
class Detection(SpokenWord):
    """A recognised command."""

    at_s: float
    """Seconds of audio fed when it was decided; `at_s - end_s` is the latency."""


@dataclass(frozen=True)
class Rejection:
    """An utterance that was not reported."""

    reason: Reason
    word: str
    """The most probable word; "" for talk, which is not recognised."""
    start_s: float
    end_s: float
    confidence: float
    """Posterior of `word`, 0..1; 0 for talk."""
    at_s: float

    @property
    def was_close(self) -> bool:
        """Whether the speaker probably meant a command, so that the reason is worth showing."""
        return self.reason in (Reason.UNSURE, Reason.AFTER_TALK, Reason.NOT_IN_GRAMMAR)


@dataclass(frozen=True)
class Examined:
    """An utterance, what was read in it, and the decision."""

    waveform: NDArray[np.float32]
    """(time,) at the bundle's rate, with margins before and after the speech; empty for talk."""
    start_s: float
    """Start of the waveform, in seconds since the stream began."""
    at_s: float
    """Seconds of audio fed when it was decided."""
    scores: dict[str, float]
    """Posterior of each label, for a classification head; empty otherwise."""
    words: tuple[SpokenWord, ...]
    """The words found; never empty, but "" for talk and a label that is no word for noise."""
    reason: Reason | None
    """Why they are rejected; None if they are accepted."""

    @property
    def detections(self) -> tuple[Detection, ...]:
        """The accepted words; empty if they are rejected."""
        if self.reason:
            return ()
        return tuple(Detection(w.word, w.start_s, w.end_s, w.confidence, self.at_s) for w in self.words)

    @property
    def rejection(self) -> Rejection | None:
        """The rejected words as one; None if they are accepted."""
        if not self.reason:
            return None
        words, confidence = " ".join(w.word for w in self.words), min(w.confidence for w in self.words)
        return Rejection(self.reason, words, self.words[0].start_s, self.words[-1].end_s, confidence, self.at_s)


@dataclass(frozen=True)
class Prediction:
    """The recognised word of a recording."""

    word: str
    """The most probable label; may be `_unknown_` or `_silence_`."""
    confidence: float
    """Its posterior, 0..1."""
    scores: dict[str, float]
    """Posterior of each label; they sum to one."""


def as_dict(found: Detection | Rejection) -> dict[str, Any]:
    """As a dictionary for JSON, numbers rounded to three places; a rejection has `"rejected": True`."""
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(found).items()}
    return {"rejected": True} | rounded if isinstance(found, Rejection) else rounded
