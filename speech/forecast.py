"""What to expect of an own word before it is used: misses, false alarms, and the words that are taken for it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from speech.activity import SAMPLE_RATE_HZ
from speech.audio import Block
from speech.own_words import OwnWord, OwnWords
from speech.recognizer import Recognizer
from speech.similarity import Similarity, Vectors, unit
from speech.word_model import WordModel, left_out, odds_of

N_DRAWN = 32
"""Recordings of each other word that are drawn to count confusions."""
SCATTER = 1.5
"""Standard deviation of the log-odds of a word's recordings, as far as a few of them do not tell."""
N_TYPICAL = 4
"""Recordings that this counts like."""
LEAST_SHARE = 0.02
"""Share of another word's recordings from which a confusion is told."""
MOST_TOLD = 5
"""Confusions told."""
MANY_MISSES, MANY_ALARMS = 0.1, 0.5
"""Share of misses, and alarms an hour, from which advice is given."""
SHORT_S = 0.45
"""Length of a word under which a longer one is advised."""
SOUNDING_DB = -25.0
FEW = 4
"""Recordings under which more are advised."""


@dataclass(frozen=True)
class Confusion:
    """Another word that sounds like it."""

    word: str
    share: float
    """Of its recordings that will be taken for the own word, 0..1."""


@dataclass(frozen=True)
class Forecast:
    """What to expect of an own word."""

    word: str
    n_recordings: int
    threshold: float
    missed: float | None
    """Share, when the one who taught it says it where it was taught; None: one recording does not tell."""
    alarms_per_hour: float
    """Of people talking, with pauses, and without the rule about commands after talk."""
    confusions: tuple[Confusion, ...]
    """The most frequent first."""
    advice: tuple[str, ...]

    @property
    def _missed(self) -> str:
        return "?" if self.missed is None else f"{100 * self.missed:.0f} %"

    @property
    def line(self) -> str:
        """In one line."""
        alike = ", ".join(c.word for c in self.confusions[:MOST_TOLD]) or "none"
        return (
            f"{self.word:12} {self.n_recordings:3} recordings   missed {self._missed:>4}   "
            f"alarms {self.alarms_per_hour:.1f} an hour   sounds like: {alike}"
        )

    def __str__(self) -> str:
        alarms = f"{self.alarms_per_hour:.1f}" if self.alarms_per_hour >= 0.05 else "fewer than 0.1"
        lines = [
            f"{self.word!r}, learnt from {self.n_recordings} recordings; expect, at confidence {self.threshold:g}:",
            f"  missed         {self._missed} of what you say as you said it here",
            f"  false alarms   about {alarms} an hour in which people talk",
        ]
        for number, confusion in enumerate(self.confusions[:MOST_TOLD]):
            title = "confused with" if not number else ""
            lines.append(f"  {title:15}{confusion.word!r}: about {100 * confusion.share:.0f} of 100 are taken for it")
        if not self.confusions:
            lines.append("  confused with  none of the model's words, your own, and the common ones")
        return "\n".join([*lines, *(f"  advice: {line}" for line in self.advice)])

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def forecast(word: OwnWord, recordings: Sequence[Block], own: OwnWords, recognizer: Recognizer) -> Forecast:
    """What to expect, from the recordings, the background of the bundle and where other words lie.

    Args:
        word: with its model.
        recordings: each (time,), of which it was learnt.
        own: all own words; the others may sound like it.
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
    """How long an utterance (time,) sounds: the 10 ms pieces that are at most `SOUNDING_DB` below its loudest."""
    step = SAMPLE_RATE_HZ // 100
    power = np.square(waveform[: len(waveform) // step * step].reshape(-1, step)).mean(1)
    return float((power > 10 ** (SOUNDING_DB / 10) * power.max(initial=0.0)).sum()) / 100


def expected_misses(log_odds: NDArray[np.float32], logit: float) -> float:
    """Share of further recordings whose log-odds stay below `logit`, by a normal distribution of a few of them.

    Args:
        log_odds: of recordings that the model did not learn from.
    """
    n, varied = len(log_odds), np.square(log_odds - log_odds.mean()).sum()
    scatter = math.sqrt((varied + N_TYPICAL * SCATTER**2) / (n - 1 + N_TYPICAL))
    return 0.5 * math.erfc((float(log_odds.mean()) - logit) / (scatter * math.sqrt(2)))


def confusions(
    similarity: Similarity, model: WordModel, places: dict[str, Vectors], logit: float
) -> tuple[Confusion, ...]:
    """The words of which a share of the recordings will be taken for this one, the most frequent first."""
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
    """What would help.

    Args:
        n: recordings.
        missed: share.
        alarms: an hour.
        length_s: of the word.
    """
    advice = []
    if n < FEW:
        advice.append(f"say it more often: speech-teach {name!r} --add")
    elif missed and missed >= MANY_MISSES:
        advice.append(f"the recordings differ; some more help: speech-teach {name!r} --add")
    if length_s < SHORT_S and (alarms >= MANY_ALARMS or found):
        advice.append(f"at {length_s:.1f} s it is short: a word or two with two syllables more is surer")
    elif alarms >= MANY_ALARMS:
        advice.append("it sounds like ordinary talk: take a rarer word, or ask for a higher --threshold")
    if found and found[0].share >= MANY_MISSES:
        advice.append(f"do not say {found[0].word!r} near it, or take another word")
    return tuple(advice)
