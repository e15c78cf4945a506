"""Commands at known times in long audio, heard through the Listener."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from recipes.metrics import Share
from speech.errors import DataError
from speech.listener import Detection, Listener
from speech.recognizer import Recognizer
from speech.training.data import KEYWORDS, SAMPLE_RATE_HZ, Corpus, Waveform, extent, set_level

LATE_S = 0.75
"""A word counts as heard when it is decided between its start and this long after its end."""
SPEECH_DB = -26.0
CONDITIONS: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0)


@dataclass(frozen=True)
class Placed:
    """A command in the stream."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Condition:
    """What happened at one signal-to-noise ratio."""

    snr_db: float | None
    """None: no noise added."""
    misses: Share
    false_alarms: int
    """Second firings and wrong words among the commands."""
    latencies_s: tuple[float, ...]

    def __str__(self) -> str:
        name = "clean" if self.snr_db is None else f"{self.snr_db:.0f} dB"
        median, late = np.quantile(self.latencies_s, [0.5, 0.95]) if self.latencies_s else (np.nan, np.nan)
        return (
            f"  {name:8}{'missed':8}{self.misses}   false {self.false_alarms:3}   "
            f"latency {1000 * median:4.0f} ms, 95 % {1000 * late:4.0f} ms"
        )


@dataclass(frozen=True)
class Live:
    """The live protocol's figures."""

    part: str
    threshold: float
    conditions: list[Condition]
    speech_alarms: int
    """Detections of the ten commands in speech without commands."""
    speech_hours: float
    noise_alarms: int
    """The same in noise alone."""
    noise_hours: float

    def __str__(self) -> str:
        return "\n".join(
            [
                f"live, {self.part}, threshold {self.threshold:g}: ten commands a second apart through the Listener",
                *map(str, self.conditions),
                f"  speech without commands: {self.speech_alarms} false alarms in {self.speech_hours:.2f} h",
                f"  noise alone:             {self.noise_alarms} false alarms in {self.noise_hours:.2f} h",
            ]
        )

    def as_dict(self) -> dict[str, object]:
        conditions = [{**asdict(c), "misses": c.misses.as_dict()} for c in self.conditions]
        return {**asdict(self), "conditions": conditions}


def place_words(corpus: Corpus, part: str, n_words: int, rng: np.random.Generator) -> tuple[Waveform, list[Placed]]:
    """Equally many clips of each command one after another, 0.5 to 2 s of nothing between them."""
    pieces, placed, at = [], [], 0
    for word in rng.permutation(np.repeat(KEYWORDS, n_words // len(KEYWORDS))):
        clip = corpus[int(rng.choice(corpus.select(part, "words", str(word))))]
        start, end = extent(clip)
        gap = int(rng.uniform(0.5, 2.0) * SAMPLE_RATE_HZ)
        clip = set_level(clip, SPEECH_DB)
        pieces += [np.zeros(gap, np.float32), clip]
        placed.append(Placed(str(word), (at + gap + start) / SAMPLE_RATE_HZ, (at + gap + end) / SAMPLE_RATE_HZ))
        at += gap + len(clip)
    return np.concatenate(pieces), placed


def noise_bed(corpus: Corpus, part: str, n_samples: int, rng: np.random.Generator) -> Waveform:
    """Pieces of five seconds of the part's noise recordings; silence where it has none."""
    sources = corpus.select(part, "noise")
    if not len(sources):
        return np.zeros(n_samples, np.float32)
    pieces = [
        corpus.crop(int(rng.choice(sources)), rng, 5 * SAMPLE_RATE_HZ)
        for _ in range(n_samples // (5 * SAMPLE_RATE_HZ) + 1)
    ]
    return np.concatenate([set_level(piece, SPEECH_DB) for piece in pieces])[:n_samples]


def score(placed: Sequence[Placed], detections: Sequence[Detection], snr_db: float | None) -> Condition:
    """Match detections to commands; each command takes the first right one in its time."""
    left, latencies = list(detections), []
    for command in placed:
        for detection in left:
            if detection.word == command.word and command.start_s <= detection.at_s <= command.end_s + LATE_S:
                left.remove(detection)
                latencies.append(detection.at_s - command.end_s)
                break
    misses = Share(len(placed) - len(latencies), len(placed))
    return Condition(snr_db, misses, len(left), tuple(round(x, 3) for x in latencies))


def blocks(waveform: Waveform) -> list[Waveform]:
    return np.array_split(waveform, max(1, len(waveform) // 1600))


def evaluate_live(recognizer: Recognizer, corpus: Corpus, part: str, n_words: int = 300) -> Live:
    """Misses and latency at several noise levels, false alarms in what holds no command.

    The same for a seed: commands, gaps and noise are drawn once and used at every level.
    """
    if not all(len(corpus.select(part, "words", word)) for word in KEYWORDS):
        raise DataError(f"the live protocol needs recordings of all ten commands in the {part} part")
    listener = Listener(recognizer, KEYWORDS)
    clean, placed = place_words(corpus, part, n_words, np.random.default_rng(0))
    noise = noise_bed(corpus, part, len(clean), np.random.default_rng(1))
    conditions = []
    for snr_db in CONDITIONS if noise.any() else CONDITIONS[:1]:
        mixed = clean if snr_db is None else np.clip(clean + noise * 10 ** (-snr_db / 20), -1, 1)
        conditions.append(score(placed, list(listener.listen(blocks(mixed))), snr_db))
    alarms, hours = {}, {}
    for source in ("speech", "noise"):
        recordings = [corpus[i] for i in corpus.select(part, source)]
        alarms[source] = sum(len(list(listener.listen(blocks(recording)))) for recording in recordings)
        hours[source] = sum(map(len, recordings)) / SAMPLE_RATE_HZ / 3600
    threshold = recognizer.info.threshold
    return Live(part, threshold, conditions, alarms["speech"], hours["speech"], alarms["noise"], hours["noise"])
