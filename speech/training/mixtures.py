"""Sequences of commands put together from single words, for the CTC head.

A mixture is a row of elements - words, other words, pieces of other speech, short sounds - with gaps between them,
from slightly overlapping to 1.5 s.  Its transcript holds the words and `_unknown_` for each run of other speech.
Noise, rooms and levels come on top, from `speech.training.augment`.  A seed gives the same mixtures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from speech.bundle import UNKNOWN
from speech.errors import ConfigError
from speech.training.data import (
    KEYWORDS,
    SAMPLE_RATE_HZ,
    Corpus,
    Waveform,
    extent,
    halve,
    isolate,
    procedural_noise,
    set_level,
    speaker_of,
)

FADE = np.linspace(0, 1, SAMPLE_RATE_HZ // 100, dtype=np.float32)
SPEECH_DB = -26.0
"""RMS level of a word in a mixture, below full scale."""


@dataclass(frozen=True)
class Placed:
    """A word in a stream."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Mixture:
    """Audio whose transcript is known."""

    waveform: Waveform
    placed: tuple[Placed, ...]

    @property
    def transcript(self) -> tuple[str, ...]:
        """The words; one `_unknown_` for each run of other speech."""
        words = [p.word for p in self.placed]
        return tuple(w for i, w in enumerate(words) if w != UNKNOWN or i == 0 or words[i - 1] != UNKNOWN)


@dataclass(frozen=True)
class MixtureConfig:
    """What one training epoch of the CTC head is made of."""

    batches: int = 60
    """Steps of an epoch."""
    audio_s: float = 512.0
    """Seconds of audio in a batch."""
    lengths_s: tuple[float, ...] = (1.2, 2.0, 3.5, 6.0)
    """Lengths of the mixtures; all of one batch are equally long."""
    command: float = 0.5
    """Share of elements that are one of the ten commands; these shares need not sum to one."""
    command_rare: float = 1.0
    """How many times as often as another a command with fewer than `rare` recordings is drawn."""
    word: float = 0.2
    """Share of elements that are other words of the vocabulary."""
    unknown_word: float = 0.1
    """The same for words outside it: `_unknown_`."""
    speech: float = 0.12
    """The same for pieces of running speech, up to 2 s: `_unknown_`."""
    partial: float = 0.04
    """The same for less than half of a word: `_unknown_`."""
    event: float = 0.04
    """The same for short sounds, which are not transcribed."""
    repeat: float = 0.1
    """Share of words that are said once more."""
    one_speaker: float = 0.4
    """Share of mixtures in which one speaker says all the words."""
    empty: float = 0.06
    """Share of mixtures that hold noise only."""
    running: float = 0.2
    """Share of mixtures that are running speech without a command from end to end."""
    synthetic: float = 0.06
    """Share of synthetic voices in a word with plenty of recordings."""
    synthetic_rare: float = 0.3
    """The same for words with fewer than `rare` recordings."""
    rare: int = 500
    """Recordings under which a word counts as rare, or has no token."""
    speed: float = 0.15
    """Largest relative change of an element's speed, which moves pitch and formants along."""
    level_db: float = 4.0
    """Largest difference of an element's level from the mixture's."""

    def __post_init__(self) -> None:
        for field in ("repeat", "one_speaker", "empty", "running", "synthetic", "synthetic_rare", "speed"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..1")
        if not self.lengths_s or min(self.lengths_s) < 1:
            raise ConfigError(f"lengths_s={self.lengths_s} must hold lengths of at least 1 s")
        if not self.command_rare > 0:
            raise ConfigError(f"command_rare={self.command_rare} must be positive")
        if self.batches < 1 or self.audio_s < max(self.lengths_s):
            raise ConfigError("batches and audio_s must allow for one mixture of the longest length")


def trim(clip: Waveform, bounds: tuple[int, int], rng: np.random.Generator) -> tuple[Waveform, int, int]:
    """A clip cut to its word (`bounds`) with 20 to 80 ms around it and soft ends; where the word lies in the cut."""
    start, end = bounds
    before, after = (int(m) for m in rng.uniform(0.02, 0.08, 2) * SAMPLE_RATE_HZ)
    begin = max(0, start - before)
    cut = clip[begin : end + after].copy()
    fade = FADE[: len(cut)]
    cut[: len(fade)] *= fade
    cut[len(cut) - len(fade) :] *= fade[::-1]
    return cut, start - begin, end - begin


def change_speed(waveform: Waveform, factor: float) -> Waveform:
    """`factor` times as fast, by linear interpolation."""
    place = np.arange(int(len(waveform) / factor)) * factor
    return np.interp(place, np.arange(len(waveform)), waveform).astype(np.float32)


def draw_gap_s(rng: np.random.Generator) -> float:
    """A pause between two elements: one in ten overlaps slightly, one in five is longer than 0.6 s."""
    low, high = ((-0.05, 0.0), (0.0, 0.15), (0.15, 0.6), (0.6, 1.5))[rng.choice(4, p=[0.1, 0.3, 0.4, 0.2])]
    return float(rng.uniform(low, high))


def pick(items: list[int] | NDArray[np.int64], rng: np.random.Generator) -> int:
    """One of many; `rng.choice` would copy them all first."""
    return int(items[rng.integers(len(items))])


class WordPool:
    """Where the elements of one part come from.

    Args:
        labels: the vocabulary; words outside it are `_unknown_`.
    """

    def __init__(self, corpus: Corpus, part: str, labels: Sequence[str], config: MixtureConfig) -> None:
        self.corpus, self.config = corpus, config
        self.words = [word for word in labels if not word.startswith("_")]
        self.others = [word for word in self.words if word not in KEYWORDS]
        self._clips: dict[tuple[str, str], list[int]] = {}
        self._by_speaker: dict[str, list[int]] = {}
        self._bounds: dict[int, tuple[int, int]] = {}
        for i, recording in enumerate(corpus.recordings):
            if recording.part != part or recording.source not in ("words", "synthetic"):
                continue
            self._clips.setdefault((recording.source, recording.word), []).append(i)
            if recording.source == "words":
                self._by_speaker.setdefault(speaker_of(recording.path), []).append(i)
        self.outside = sorted({word for _, word in self._clips} - set(self.words))
        self.speech, self.noise = corpus.select(part, "speech"), corpus.select(part, "noise")

    def is_rare(self, word: str) -> bool:
        return len(self._clips.get(("words", word), [])) < self.config.rare

    def draw(self, word: str, rng: np.random.Generator) -> int:
        """A recording of a word, at times a synthetic one."""
        real, synthetic = self._clips.get(("words", word), []), self._clips.get(("synthetic", word), [])
        share = self.config.synthetic_rare if self.is_rare(word) else self.config.synthetic
        return pick(synthetic if not real or (synthetic and rng.random() < share) else real, rng)

    def draw_same_speaker(self, like: int, rng: np.random.Generator) -> int:
        """Another recording by the speaker of recording `like`."""
        recording = self.corpus.recordings[like]
        return pick(self._by_speaker.get(speaker_of(recording.path), [like]), rng)

    def bounds(self, index: int) -> tuple[int, int]:
        """Where the word of a recording lies, in samples; remembered."""
        if index not in self._bounds:
            self._bounds[index] = extent(self.corpus[index])
        return self._bounds[index]

    def label(self, index: int) -> str:
        word = self.corpus.recordings[index].word
        return word if word in self.words else UNKNOWN


@dataclass(frozen=True)
class Element:
    """What stands in a mixture: its sound, what is transcribed of it ("" for nothing) and where that lies in it."""

    waveform: Waveform
    label: str
    start: int
    end: int


class MixtureMaker:
    """Draws elements and lays them in a row."""

    def __init__(self, pool: WordPool, config: MixtureConfig) -> None:
        self.pool, self.config = pool, config
        kinds = {
            "command": config.command,
            "word": config.word if pool.others else 0.0,
            "unknown_word": config.unknown_word if pool.outside else 0.0,
            "speech": config.speech if len(pool.speech) else 0.0,
            "partial": config.partial,
            "event": config.event,
        }
        self._kinds = list(kinds)
        self._shares = np.array(list(kinds.values())) / sum(kinds.values())
        weights = np.array([config.command_rare if pool.is_rare(word) else 1.0 for word in KEYWORDS])
        self._likely = weights / weights.sum()

    def make(self, length: int, rng: np.random.Generator) -> Mixture:
        """A mixture of `length` samples: as many elements as it holds, up to eight."""
        if rng.random() < self.config.empty:
            return Mixture(np.zeros(length, np.float32), ())
        if len(self.pool.speech) and rng.random() < self.config.running:
            return self._running(length, rng)
        elements = self._elements(length, rng)
        return lay(elements, [draw_gap_s(rng) for _ in elements], length, rng)

    def _running(self, length: int, rng: np.random.Generator) -> Mixture:
        speech = self.pool.corpus.crop(pick(self.pool.speech, rng), rng, length)
        speech = set_level(speech, SPEECH_DB + rng.uniform(-1, 1) * self.config.level_db)
        return Mixture(speech, (Placed(UNKNOWN, 0.0, length / SAMPLE_RATE_HZ),))

    def _elements(self, length: int, rng: np.random.Generator) -> list[Element]:
        wanted = 8 if rng.random() < 0.6 else int(rng.integers(1, 8))
        one_speaker = rng.random() < self.config.one_speaker
        elements: list[Element] = []
        last: int | None = None  # the recording of the last word
        speed = 1 + self.config.speed * rng.uniform(-1, 1)
        room = length
        while len(elements) < wanted and room > 0:
            if last is not None and rng.random() < self.config.repeat:
                index = self.pool.draw(self.pool.corpus.recordings[last].word, rng)
                element = self._word(index, speed, rng)
            else:
                kind = str(rng.choice(self._kinds, p=self._shares))
                if kind in ("command", "word", "unknown_word"):
                    words = {"command": KEYWORDS, "word": self.pool.others, "unknown_word": self.pool.outside}[kind]
                    likely = self._likely if kind == "command" else None
                    index = self.pool.draw(str(rng.choice(words, p=likely)), rng)
                    if one_speaker and last is not None and kind != "unknown_word":
                        index = self.pool.draw_same_speaker(last, rng)
                    last = index
                    element = self._word(index, speed, rng)
                else:
                    element = self._other(kind, rng)
            elements.append(element)
            room -= len(element.waveform)
        return elements

    def _word(self, index: int, speed: float, rng: np.random.Generator) -> Element:
        cut, start, end = trim(self.pool.corpus[index], self.pool.bounds(index), rng)
        speed *= 1 + 0.05 * rng.uniform(-1, 1)
        cut = self._level(change_speed(cut, speed), rng)
        return Element(cut, self.pool.label(index), int(start / speed), int(end / speed))

    def _other(self, kind: str, rng: np.random.Generator) -> Element:
        pool = self.pool
        if kind == "speech":
            piece = pool.corpus.crop(pick(pool.speech, rng), rng, int(rng.uniform(0.3, 2.0) * SAMPLE_RATE_HZ))
            return Element(self._level(piece, rng), UNKNOWN, 0, len(piece))
        if kind == "partial":
            piece = halve(pool.corpus[pool.draw(str(rng.choice(pool.words)), rng)], rng)
            piece, start, end = trim(piece, extent(piece), rng)
            return Element(self._level(piece, rng), UNKNOWN, start, end)
        noise = pool.corpus.crop(pick(pool.noise, rng), rng) if len(pool.noise) else procedural_noise(rng)
        alone = isolate(noise, rng)
        piece, start, end = trim(alone, extent(alone), rng)
        return Element(self._level(piece, rng), "", start, end)

    def _level(self, waveform: Waveform, rng: np.random.Generator) -> Waveform:
        return set_level(waveform, SPEECH_DB + rng.uniform(-1, 1) * self.config.level_db)


def lay(elements: Sequence[Element], gaps_s: Sequence[float], length: int, rng: np.random.Generator) -> Mixture:
    """Elements in a row, each gap before its element, as many as fit; what is left over is split before and behind."""
    begin: list[int] = []
    at = 0
    for element, gap_s in zip(elements, gaps_s, strict=True):
        at = max(0, at + int(gap_s * SAMPLE_RATE_HZ)) if begin else 0
        if at + len(element.waveform) > length:
            break
        begin.append(at)
        at += len(element.waveform)
    offset = int(rng.integers(length - at + 1)) if begin and at <= length else 0
    waveform, placed = np.zeros(length, np.float32), []
    for element, at in zip(elements, begin, strict=False):
        at += offset
        waveform[at : at + len(element.waveform)] += element.waveform[: length - at]
        if element.label:
            start_s, end_s = (at + element.start) / SAMPLE_RATE_HZ, (at + element.end) / SAMPLE_RATE_HZ
            placed.append(Placed(element.label, start_s, end_s))
    return Mixture(np.clip(waveform, -1, 1), tuple(placed))


class MixtureBatches(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """One epoch of batches, drawn anew from `seed` and `epoch`.

    Item: waveform (batch, time), a noise to mix in (batch, time), targets (batch, most words) padded with 0, their
    numbers (batch,).
    """

    def __init__(self, corpus: Corpus, labels: Sequence[str], config: MixtureConfig, seed: int, epoch: int) -> None:
        self.labels, self.config, self.seed, self.epoch = list(labels), config, seed, epoch
        self.pool = WordPool(corpus, "training", labels, config)
        self.maker = MixtureMaker(self.pool, config)

    def __len__(self) -> int:
        return self.config.batches

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if position >= len(self):
            raise IndexError(position)
        rng = np.random.default_rng([self.seed, self.epoch, position])
        length_s = float(rng.choice(self.config.lengths_s))
        length, size = round(length_s * SAMPLE_RATE_HZ), max(1, int(self.config.audio_s / length_s))
        mixtures = [self.maker.make(length, rng) for _ in range(size)]
        targets, n_targets = encode([m.transcript for m in mixtures], self.labels)
        noise = np.stack([self._noise(length, rng) for _ in mixtures])
        return torch.from_numpy(np.stack([m.waveform for m in mixtures])), torch.from_numpy(noise), targets, n_targets

    def _noise(self, length: int, rng: np.random.Generator) -> NDArray[np.float32]:
        if not len(self.pool.noise) or rng.random() < 0.1:
            return np.resize(procedural_noise(rng), length)
        return self.pool.corpus.crop(pick(self.pool.noise, rng), rng, length)


def encode(transcripts: Sequence[Sequence[str]], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Transcripts -> token numbers (batch, most words) padded with 0, and how many there are (batch,)."""
    number = {label: n for n, label in enumerate(labels)}
    n_words = torch.tensor([len(t) for t in transcripts])
    targets = torch.zeros(len(transcripts), max(1, int(n_words.max())), dtype=torch.long)
    for row, transcript in zip(targets, transcripts, strict=True):
        row[: len(transcript)] = torch.tensor([number[word] for word in transcript], dtype=torch.long)
    return targets, n_words


def fixed_mixtures(
    corpus: Corpus,
    part: str,
    n: int,
    seed: int,
    words: Sequence[str] = KEYWORDS,
    sizes: tuple[int, int] = (1, 6),
    gaps_s: tuple[float, float] = (0.1, 0.8),
) -> list[Mixture]:
    """The same `n` mixtures of real words for a seed, to measure on.

    Each holds `sizes` words (both ends included) with `gaps_s` between them, half of them by one speaker where
    he has said enough, 0.3 to 0.6 s of nothing before and 0.8 s behind.
    """
    rng = np.random.default_rng(seed)
    pool = WordPool(corpus, part, words, MixtureConfig(synthetic=0.0, synthetic_rare=0.0))
    mixtures = []
    for number in range(n):
        size = int(rng.integers(sizes[0], sizes[1] + 1))
        chosen = [pool.draw(str(rng.choice(words)), rng) for _ in range(size)]
        if number % 2:
            same = [pool.draw_same_speaker(chosen[0], rng) for _ in chosen]
            chosen = [i for i in same if pool.label(i) != UNKNOWN] or chosen
        elements = []
        for index in chosen:
            cut, start, end = trim(corpus[index], pool.bounds(index), rng)
            elements.append(Element(set_level(cut, SPEECH_DB), pool.label(index), start, end))
        spoken = sum(len(e.waveform) for e in elements)
        gaps = rng.uniform(*gaps_s, len(elements))
        length = spoken + int(gaps[1:].sum() * SAMPLE_RATE_HZ) + 1
        laid = lay(elements, gaps.tolist(), length, rng)
        lead = int(rng.uniform(0.3, 0.6) * SAMPLE_RATE_HZ)
        waveform = np.pad(laid.waveform, (lead, int(0.8 * SAMPLE_RATE_HZ)))
        moved = [
            Placed(p.word, p.start_s + lead / SAMPLE_RATE_HZ, p.end_s + lead / SAMPLE_RATE_HZ) for p in laid.placed
        ]
        mixtures.append(Mixture(waveform, tuple(moved)))
    return mixtures
