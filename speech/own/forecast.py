"""Forecast for an own word before it is used: misses, false alarms, and words that will be mistaken for it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from speech.own.matching import WordModel, left_out, odds_of
from speech.own.similarity import Similarity, Vectors, unit
from speech.own.words import OwnWord, OwnWords
from speech.recognizer import Recognizer
from speech.segment import SAMPLE_RATE_HZ
from speech.sound.files import Block

N_DRAWN = 32
"""Simulated recordings of each other word, drawn to estimate confusions."""
SCATTER = 1.5
"""Prior standard deviation of the log-odds of a word's recordings."""
N_TYPICAL = 4
"""Weight of that prior, in recordings."""
LEAST_SHARE = 0.02
"""Least share of another word's recordings for which a confusion is reported."""
MOST_TOLD = 5
"""Largest number of confusions printed."""
MANY_MISSES, MANY_ALARMS = 0.1, 0.5
"""Share of misses, and false alarms per hour, from which advice is given."""
SHORT_S = 0.45
"""A longer word is advised below this length."""
SOUNDING_DB = -25.0
"""Power relative to the loudest 10 ms, above which 10 ms count as sounding."""
FEW = 4
"""More recordings are advised below this number."""


@dataclass(frozen=True)
class Confusion:
    """Another word that sounds like the own word."""

    word: str
    share: float
    """Share of its utterances that will be mistaken for the own word, 0..1."""


@dataclass(frozen=True)
class Forecast:
    """What to expect of an own word."""

    word: str
    n_recordings: int
    threshold: float
    """Confidence needed, 0..1."""
    missed: float | None
    """Share of misses, 0..1, for the same speaker in the same place; None if there is only one recording."""
    alarms_per_hour: float
    """False alarms per hour of speech, pauses included, if commands right after speech are not rejected."""
    confusions: tuple[Confusion, ...]
    """The most frequent first."""
    advice: tuple[str, ...]

    @property
    def _missed(self) -> str:
        return "?" if self.missed is None else f"{100 * self.missed:.0f} %"

    @property
    def line(self) -> str:
        """The forecast in one line."""
        alike = ", ".join(c.word for c in self.confusions[:MOST_TOLD]) or "none"
        return (
            f"{self.word:12} {self.n_recordings:3} recordings   missed {self._missed:>4}   "
            f"false alarms {self.alarms_per_hour:.1f} per hour   sounds like: {alike}"
        )

    def __str__(self) -> str:
        alarms = f"{self.alarms_per_hour:.1f}" if self.alarms_per_hour >= 0.05 else "fewer than 0.1"
        lines = [
            f"{self.word!r}, learnt from {self.n_recordings} recordings; at threshold {self.threshold:g}, expect:",
            f"  missed         {self._missed} if you say it the way you did now",
            f"  false alarms   about {alarms} per hour of speech",
        ]
        for number, confusion in enumerate(self.confusions[:MOST_TOLD]):
            title = "confused with" if not number else ""
            lines.append(f"  {title:15}{confusion.word!r}: about {100 * confusion.share:.0f} % are mistaken for it")
        if not self.confusions:
            lines.append("  confused with  none of the model's words, your own words or common words")
        return "\n".join([*lines, *(f"  advice: {line}" for line in self.advice)])

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def forecast(word: OwnWord, recordings: Sequence[Block], own: OwnWords, recognizer: Recognizer) -> Forecast:
    """Estimate misses, false alarms and confusions, from the recordings and the `Similarity` of the bundle.

    Args:
        word: the own word; it must have a model.
        recordings: each (time,), the recordings that it was learnt from.
        own: all own words; the others are checked for confusions.
        recognizer: gives embeddings, threshold, background speech and common words.
    """
    similarity, model = recognizer.similarity, word.model
    assert model
    logit = float(np.log(recognizer.info.threshold / (1 - recognizer.info.threshold)))
    vectors = similarity.project(np.stack([recognizer.embed(waveform) for waveform in recordings]))
    places = dict(zip(similarity.words, similarity.places, strict=True))
    length = float(np.linalg.norm(similarity.places, axis=1).mean())
    places |= {other.name: length * other.model.place for other in own if other.model and other.name != word.name}
    places.pop(word.name, None)
    n_alarms = int((odds_of(similarity.background_scores(model.place)) >= logit).sum())
    missed = expected_misses(left_out(similarity, vectors), logit) if len(vectors) > 1 else None
    found = confusions(similarity, model, places, logit)
    alarms = n_alarms / similarity.hours
    length_s = float(np.median([sounding_s(waveform) for waveform in recordings]))
    advice = advise(word.name, len(vectors), missed, alarms, found, length_s)
    return Forecast(word.name, len(vectors), recognizer.info.threshold, missed, alarms, found, advice)


def sounding_s(waveform: Block) -> float:
    """Seconds of an utterance (time,) that sound: 10 ms pieces within `SOUNDING_DB` of the loudest one."""
    step = SAMPLE_RATE_HZ // 100
    power = np.square(waveform[: len(waveform) // step * step].reshape(-1, step)).mean(1)
    return float((power > 10 ** (SOUNDING_DB / 10) * power.max(initial=0.0)).sum()) / 100


def expected_misses(log_odds: NDArray[np.float32], logit: float) -> float:
    """Expected share of further recordings whose log-odds stay below `logit`, assuming a normal distribution.

    Args:
        log_odds: (recordings,) log-odds under models that did not learn from the recording, see `left_out`.
        logit: log-odds of the threshold.
    """
    n, varied = len(log_odds), np.square(log_odds - log_odds.mean()).sum()
    scatter = math.sqrt((varied + N_TYPICAL * SCATTER**2) / (n - 1 + N_TYPICAL))
    return 0.5 * math.erfc((float(log_odds.mean()) - logit) / (scatter * math.sqrt(2)))


def confusions(
    similarity: Similarity, model: WordModel, places: dict[str, Vectors], logit: float
) -> tuple[Confusion, ...]:
    """The words that will be mistaken for this one, the most frequent first.

    Args:
        places: name -> (axes,) mean of the word's recordings after the projection, not a unit vector.
        logit: log-odds of the threshold.
    """
    scatter = np.random.default_rng(0).standard_normal((N_DRAWN, len(model.place))) * similarity.spread
    scatter = scatter.astype(np.float32)
    shares = {
        name: float((model.log_odds(similarity, unit(place + scatter)) >= logit).mean())
        for name, place in places.items()
    }
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return tuple(Confusion(name, round(share, 3)) for name, share in ordered if share >= LEAST_SHARE)


def advise(
    name: str, n: int, missed: float | None, alarms: float, found: Sequence[Confusion], length_s: float
) -> tuple[str, ...]:
    """What would improve the word, one line each.

    Args:
        name: the word.
        n: number of recordings.
        missed: share of misses, 0..1, or None.
        alarms: false alarms per hour.
        found: confusions, the most frequent first.
        length_s: length of the word.
    """
    advice = []
    if n < FEW:
        advice.append(f"say it more often: speech-teach {name!r} --add")
    elif missed and missed >= MANY_MISSES:
        advice.append(f"the recordings differ; add more: speech-teach {name!r} --add")
    if length_s < SHORT_S and (alarms >= MANY_ALARMS or found):
        advice.append(f"at {length_s:.1f} s it is short: a word or phrase with two more syllables is more reliable")
    elif alarms >= MANY_ALARMS:
        advice.append("it sounds like ordinary speech: choose a rarer word or a higher --threshold")
    if found and found[0].share >= MANY_MISSES:
        advice.append(f"avoid saying {found[0].word!r} near the microphone, or choose another word")
    return tuple(advice)
