"""Forecast for an own word before it is used: misses, false alarms, and words that will be mistaken for it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from speech.own.matching import WordModel
from speech.own.similarity import Similarity, Vectors, left_out, unit
from speech.own.words import OwnWord, OwnWords
from speech.recognizer import Recognizer
from speech.segment import SAMPLE_RATE_HZ
from speech.sound.files import Block

SINGLE = 0.8
"""Mean score of a word's recordings, in scores of their mean, which is more like everything than they are."""
N_TYPICAL = 4
"""Weight of the usual scatter of recordings beside that of the word's own, in recordings."""
WIDTH = 2.0
"""Half the width of a forecast, in standard deviations over words of the training: four in five of other words lie
within."""
LEAST_SHARE = 0.02
"""Least share of another word's recordings for which a confusion is reported."""
MOST_TOLD = 5
"""Largest number of confusions printed."""
MANY_MISSES, MANY_ALARMS = 0.15, 0.5
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
    """What to expect of an own word at the model's threshold."""

    word: str
    n_recordings: int
    missed: tuple[float, float] | None
    """Least and largest share of misses, 0..1, for the speakers of the recordings; None for a single recording."""
    others_missed: tuple[float, float] | None
    """The same for other speakers, if one speaker taught it."""
    alarms_per_hour: float
    """False alarms per hour of speech, pauses included; commands right after talk are rejected."""
    confusions: tuple[Confusion, ...]
    """The most frequent first."""
    advice: tuple[str, ...]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What is shown to a person: titles and texts."""
        alarms = f"about {self.alarms_per_hour:.1f}" if self.alarms_per_hour >= 0.05 else "fewer than 0.1"
        alike = [f"{c.word!r} ({100 * c.share:.0f} % are mistaken for it)" for c in self.confusions[:MOST_TOLD]]
        others = f"{_shares(self.others_missed)} if one voice taught it; let the others add theirs with --add"
        return [
            ("missed", f"{_shares(self.missed)} of the time, said by whoever taught it"),
            ("by others", others if self.others_missed else "not known"),
            ("false alarms", f"{alarms} per hour of speech"),
            ("sounds like", ", ".join(alike) or "none of the model's words, your own words or common words"),
            *(("advice", line) for line in self.advice),
        ]

    @property
    def line(self) -> str:
        """The forecast in one line."""
        alike = ", ".join(c.word for c in self.confusions[:MOST_TOLD]) or "none"
        return (
            f"{self.word:12} {self.n_recordings:3} recordings   missed {_shares(self.missed):>10}   "
            f"false alarms {self.alarms_per_hour:.1f} per hour   sounds like: {alike}"
        )

    def __str__(self) -> str:
        recordings = f"{self.n_recordings} recording{'s' * (self.n_recordings > 1)}"
        return "\n".join(
            [f"{self.word!r}, learnt from {recordings}; expect:", *(f"  {a + ':':14}{b}" for a, b in self.rows)]
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"rows": self.rows}


def _shares(bounds: tuple[float, float] | None) -> str:
    """As in "5 to 20 %"."""
    return "?" if bounds is None else f"{math.floor(100 * bounds[0])} to {math.ceil(100 * bounds[1])} %"


def forecast(word: OwnWord, own: OwnWords, recognizer: Recognizer) -> Forecast:
    """Estimate misses, false alarms and confusions, from the recordings and the `Similarity` of the bundle.

    Args:
        word: the own word; the recogniser has learnt it.
        own: all own words; the others are checked for confusions.
        recognizer: has the models of the words, background speech and common words.
    """
    similarity, model = recognizer.similarity, recognizer.models[word]
    places = dict(zip(similarity.words, unit(similarity.places), strict=True))
    places |= {other.name: recognizer.models[other].place for other in own.values()}
    places.pop(word.name, None)
    n_alarms = int((similarity.background_scores(model.place) >= model.least).sum())
    alarms = n_alarms * similarity.expected.alone / similarity.hours
    alike, missed = confusions(similarity, model, places), expected_misses(similarity, model)
    others = expected_misses(similarity, model, similarity.expected.others)
    length_s = float(np.median([sounding_s(waveform) for waveform in word.utterances()]))
    advice = advise(word.name, len(model.vectors), missed, alarms, alike, length_s)
    return Forecast(word.name, len(model.vectors), missed, others, alarms, alike, advice)


def sounding_s(waveform: Block) -> float:
    """Seconds of an utterance (time,) that sound: 10 ms pieces within `SOUNDING_DB` of the loudest one."""
    step = SAMPLE_RATE_HZ // 100
    power = np.square(waveform[: len(waveform) // step * step].reshape(-1, step)).mean(1)
    return float((power > 10 ** (SOUNDING_DB / 10) * power.max(initial=0.0)).sum()) / 100


def expected_misses(similarity: Similarity, model: WordModel, shift: float = 0.0) -> tuple[float, float] | None:
    """Bounds of the share of further recordings below the word's threshold, assuming a normal distribution.

    Five recordings in one breath resemble one another more than next week's, so the mean of further recordings is
    uncertain by as much as was observed between lessons and further recordings of other words.

    Args:
        shift: expected difference of their mean from that of the lesson.
    Returns:
        least and largest share, 0..1; None for a single recording.
    """
    n = len(model.vectors)
    if n < 2:
        return None
    scores, expected = left_out(similarity, model.vectors), similarity.expected
    varied = np.square(scores - scores.mean()).sum() + N_TYPICAL * expected.scatter**2
    scatter = math.sqrt(varied / (n - 1 + N_TYPICAL))
    middle, width = float(scores.mean()) + shift - model.least, WIDTH * math.hypot(expected.drift, scatter / n**0.5)
    return _below(-(middle + width) / scatter), _below(-(middle - width) / scatter)


def confusions(similarity: Similarity, model: WordModel, places: dict[str, Vectors]) -> tuple[Confusion, ...]:
    """The words that will be mistaken for this one, the most frequent first.

    Args:
        places: name -> (axes,) mean of the word's recordings as a unit vector.
    """
    scores = SINGLE * similarity.scores(model.place[None], np.stack(list(places.values())))[:, 0]
    shares = [_below((model.least - score) / similarity.expected.scatter, -1) for score in scores.tolist()]
    ordered = sorted(zip(places, shares, strict=True), key=lambda item: -item[1])
    return tuple(Confusion(name, round(share, 3)) for name, share in ordered if share >= LEAST_SHARE)


def _below(deviations: float, sign: int = 1) -> float:
    """Share of a normal distribution below, or with sign -1 above, so many standard deviations."""
    return 0.5 * math.erfc(-sign * deviations / math.sqrt(2))


def advise(
    name: str, n: int, missed: tuple[float, float] | None, alarms: float, alike: Sequence[Confusion], length_s: float
) -> tuple[str, ...]:
    """What would improve the word, one line each; the arguments are those of `Forecast`, and the length of the word."""
    advice = []
    if n < FEW:
        advice.append(f"say it more often: speech-teach {name!r} --add")
    elif missed and sum(missed) / 2 >= MANY_MISSES:
        advice.append(f"the recordings differ; add more: speech-teach {name!r} --add")
    if length_s < SHORT_S and (alarms >= MANY_ALARMS or alike):
        advice.append(f"at {length_s:.1f} s it is short: a word or phrase with two more syllables is more reliable")
    elif alarms >= MANY_ALARMS:
        advice.append("it sounds like ordinary speech: choose a rarer word or a higher --threshold")
    if alike and alike[0].share >= MANY_MISSES:
        advice.append(f"avoid saying {alike[0].word!r} near the microphone, or choose another word")
    return tuple(advice)
