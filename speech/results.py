"""What listening and recognising return: the public types, and nothing heavy."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Reason(StrEnum):
    """Why an utterance was rejected."""

    UNSURE = "unsure"
    """It sounds like a command, but below that word's threshold."""
    ANOTHER_WORD = "another word"
    """Speech that is none of the words."""
    NO_WORD = "no word"
    """No speech: a noise that the voice activity detector took for some."""
    TOO_LONG = "too long"
    """Talk: longer than a command can be."""
    AFTER_TALK = "after talk"
    """A command, but said right after talk."""
    NOT_IN_GRAMMAR = "not in the grammar"
    """Words that the grammar does not allow here."""
    NOT_ASKED_FOR = "not asked for"
    """A word of the model that the listener was not asked for."""
    NO_WAKE_WORD = "no wake word"
    """A command without the wake word just before it."""


@dataclass(frozen=True)
class Detection:
    """A command that was heard."""

    word: str
    start_s: float
    """Where its sound begins, in seconds since the stream began."""
    end_s: float
    """Where its sound ends."""
    confidence: float
    """Posterior of the word, 0..1."""
    at_s: float
    """How much audio had been heard when it was decided; `at_s - end_s` is the latency."""


@dataclass(frozen=True)
class Rejection:
    """An utterance that was heard and not reported."""

    reason: Reason
    word: str
    """What it sounds most like; "" for talk that was not read."""
    start_s: float
    end_s: float
    confidence: float
    """Posterior of `word`, 0..1; 0 for talk that was not read."""
    at_s: float

    @property
    def was_close(self) -> bool:
        """Whether a person may have meant a command, and wants to know why nothing happened."""
        return self.reason in (Reason.UNSURE, Reason.AFTER_TALK, Reason.NOT_IN_GRAMMAR)


@dataclass(frozen=True)
class Examined:
    """One utterance, what the model made of it and what was decided."""

    waveform: NDArray[np.float32]
    """(time,) at the bundle's rate, with its margins; empty for talk that was not read."""
    start_s: float
    """Where the waveform begins in the stream."""
    at_s: float
    scores: dict[str, float]
    """Posterior of each label, for a classification head; empty otherwise."""
    detections: tuple[Detection, ...]
    rejection: Rejection | None
    """Exactly one of the two is there."""


@dataclass(frozen=True)
class Prediction:
    """What one recording holds."""

    word: str
    """The best label; may be `_unknown_` or `_silence_`."""
    confidence: float
    """Its posterior, 0..1."""
    scores: dict[str, float]
    """The posterior of every label; they sum to one."""


@dataclass(frozen=True)
class SpokenWord:
    """A word of a sequence."""

    word: str
    start_s: float
    """Where its token begins, in seconds; the sound may reach further to both sides."""
    end_s: float
    """Where its token ends."""
    confidence: float
    """How much better the word explains what is there than everything else, see `ctc.confidences`; 0..1."""


def as_dict(found: Detection | Rejection) -> dict[str, Any]:
    """For JSON: times and confidence to three places; a rejection is marked as one."""
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(found).items()}
    return {"rejected": True} | rounded if isinstance(found, Rejection) else rounded
