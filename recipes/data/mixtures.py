"""Sequences of commands assembled from single words, for the CTC head.

A mixture is a sequence of elements: words, other words, pieces of other speech, short sounds.  The gaps between them
range from a slight overlap to 1.5 s.  The transcript holds the words, and `_unknown_` for each run of other speech.
`recipes.data.augment` adds noise, rooms and levels later.  The same seed gives the same mixtures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from recipes.data.clips import SAMPLE_RATE_HZ, SPEECH_DB, Numbers, Reals, Waveform, set_level
from recipes.data.corpus import Corpus, speaker_of
from recipes.data.material import Material, NoiseMix, Sounds, SourceMix, draw_noise
from recipes.data.plan import Movable, Plan, no_noise, plan_elements, played
from speech.bundle import UNKNOWN
from speech.errors import ConfigError

FADE = np.linspace(0, 1, SAMPLE_RATE_HZ // 100, dtype=np.float32)
MOST_ELEMENTS = 8
"""Largest number of elements in a mixture."""
MARGIN_S = (0.02, 0.08)
"""Range of the audio kept before and after the word of a recording."""
GAPS_S = ((-0.05, 0.0), (0.0, 0.15), (0.15, 0.6), (0.6, 1.5))
GAP_SHARES = (0.1, 0.3, 0.4, 0.2)
"""Ranges of the pause between two elements and the probability of each; one in ten pairs overlaps slightly."""
EVENTS = ("procedural", "events")
"""Sources of short sounds."""
NOTHING = -1
"""Label of elements that are not transcribed."""

FIELDS = ("recording", "start", "end")


@dataclass(frozen=True)
class Placed:
    """A word and its place in a stream."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Mixture:
    """Audio with a known transcript."""

    waveform: Waveform
    placed: tuple[Placed, ...]

    @property
    def transcript(self) -> tuple[str, ...]:
        """The words; one `_unknown_` for each run of other speech."""
        words = [p.word for p in self.placed]
        return tuple(w for i, w in enumerate(words) if w != UNKNOWN or i == 0 or words[i - 1] != UNKNOWN)


@dataclass(frozen=True)
class MixtureConfig(SourceMix):
    """Composition of one training epoch of the CTC head."""

    batches: int = 60
    """Steps of an epoch."""
    audio_s: float = 512.0
    """Seconds of audio in a batch of one process."""
    lengths_s: tuple[float, ...] = (1.2, 2.0, 3.5, 6.0)
    """Lengths of the mixtures; those of a batch are equally long."""
    command: float = 0.6
    """Share of elements that are commands.  The shares down to `event` need not sum to one."""
    command_rare: float = 1.8
    """Probability of a command with fewer than `rare` recordings, relative to the other commands."""
    word: float = 0.2
    """Share of elements that are other words of the vocabulary."""
    unknown_word: float = 0.15
    """The same for words outside the vocabulary: `_unknown_`."""
    speech: float = 0.15
    """The same for pieces of running speech, up to 2 s: `_unknown_`."""
    event: float = 0.06
    """The same for short sounds, which are not transcribed."""
    repeat: float = 0.1
    """Probability that an element repeats the last word."""
    one_speaker: float = 0.25
    """Share of mixtures whose words of the vocabulary come from one speaker."""
    empty: float = 0.06
    """Share of mixtures with noise only."""
    running: float = 0.22
    """Share of mixtures with running speech from end to end and no command."""
    speed: float = 0.2
    """Largest relative change of a mixture's speed, which also changes pitch and formants."""
    level_db: float = 5.0
    """Largest difference of an element's level from the nominal one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("repeat", "one_speaker", "empty", "running", "speed"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..1")
        if not self.lengths_s or min(self.lengths_s) < 1:
            raise ConfigError(f"lengths_s={self.lengths_s} must hold lengths of at least 1 s")
        if not self.command_rare > 0:
            raise ConfigError(f"command_rare={self.command_rare} must be positive")
        if self.batches < 1 or self.audio_s < max(self.lengths_s):
            raise ConfigError("batches and audio_s must allow for one mixture of the longest length")


@dataclass(frozen=True)
class Mixtures(Movable):
    """One batch of the CTC head."""

    plan: Plan
    targets: Tensor
    """(batch, longest transcript) tokens, padded with 0."""
    n_targets: Tensor
    """(batch,) lengths of the transcripts."""


@dataclass(frozen=True)
class Row:
    """Elements of mixtures before they are placed; arrays (mixtures, elements)."""

    sounds: Sounds
    margin: Numbers
    """(2, mixtures, elements) samples of the recording that are kept before and after the sound."""
    label: Numbers
    """Index of the token; `NOTHING` for elements that are not transcribed."""
    speed: Reals
    gain: Reals


class MixtureMaker:
    """Draws many mixtures at once.

    Args:
        material: the training part.
        labels: tokens; words outside them are `_unknown_`.
        config: composition of the mixtures.
    """

    def __init__(self, material: Material, labels: Sequence[str], config: MixtureConfig) -> None:
        self.material, self.config = material, config
        label = {name: number for number, name in enumerate(labels)}
        self.unknown = label[UNKNOWN]
        self.token = np.array([label.get(word, self.unknown) for word in material.words], np.int64)
        """(words,) the token of each word of the material."""
        commands = [material.number(word) for word in material.commands if material.number(word) >= 0]
        known = self.token != self.unknown
        others = [n for n in np.flatnonzero(known) if n not in commands]
        self.pools = {
            "command": np.array(commands, np.int64),
            "word": np.array(others, np.int64),
            "unknown_word": np.flatnonzero(~known),
        }
        shares = {
            "command": config.command,
            "word": config.word if others else 0.0,
            "unknown_word": config.unknown_word if not known.all() else 0.0,
            "speech": config.speech if material.has("speech") else 0.0,
            "event": config.event if any(map(material.has_pieces, EVENTS)) else 0.0,
        }
        self.kinds = list(shares)
        self.shares = np.array(list(shares.values())) / sum(shares.values())
        rare = [material.is_rare(material.words[n]) for n in commands]
        weights = np.where(rare, config.command_rare, 1.0)
        self.likely = weights / weights.sum()

    def make(self, length: int, size: int, rng: np.random.Generator) -> tuple[Plan, Tensor, Tensor]:
        """Draw `size` mixtures of `length` samples; return the plan without noise, the targets and their lengths."""
        row = self._elements(size, rng)
        offset, fits = lay_in_a_row(self._n_samples(row), self._gaps(size, rng), length, rng)
        wanted = np.where(rng.random(size) < 0.6, MOST_ELEMENTS, rng.integers(1, MOST_ELEMENTS, size))
        kind = rng.random(size)
        fits &= (np.arange(MOST_ELEMENTS) < wanted[:, None]) & (kind >= self.config.empty)[:, None]
        running = (kind >= self.config.empty) & (kind < self.config.empty + self.config.running)
        if self.material.has("speech"):
            row, offset = self._running(row, offset, running, length, rng)
            fits = np.where(running[:, None], np.arange(MOST_ELEMENTS) == 0, fits)
        tokens, n_tokens = transcripts(np.where(fits, row.label, NOTHING), self.unknown)
        return self._plan(row, offset, fits, length), torch.from_numpy(tokens), torch.from_numpy(n_tokens)

    def _elements(self, size: int, rng: np.random.Generator) -> Row:
        """Draw `MOST_ELEMENTS` elements for each mixture."""
        config, material = self.config, self.material
        kinds = rng.choice(len(self.kinds), (size, MOST_ELEMENTS), p=self.shares)
        one_speaker = rng.random(size) < config.one_speaker
        last = np.full(size, -1)  # the recording of the last word
        recording, start, end = (np.zeros((size, MOST_ELEMENTS), np.int64) for _ in range(3))
        label = np.full((size, MOST_ELEMENTS), NOTHING)
        for slot in range(MOST_ELEMENTS):
            again = (last >= 0) & (rng.random(size) < config.repeat)
            chosen = self._words(kinds[:, slot], again, one_speaker, last, rng)
            spoken = chosen >= 0
            safe = np.maximum(chosen, 0)
            last = np.where(spoken & ~again, chosen, last)
            other = self._others(kinds[:, slot], rng)
            recording[:, slot] = np.where(spoken, safe, other.recording)
            start[:, slot] = np.where(spoken, material.corpus.start[safe], other.start)
            end[:, slot] = np.where(spoken, material.corpus.end[safe], other.end)
            is_speech = kinds[:, slot] == self.kinds.index("speech")
            label[:, slot] = np.where(
                spoken, self.token[material.word[safe]], np.where(is_speech, self.unknown, NOTHING)
            )
        sounds = Sounds(recording, start, end)
        margin = (rng.uniform(*MARGIN_S, (2, size, MOST_ELEMENTS)) * SAMPLE_RATE_HZ).astype(np.int64)
        is_word = kinds < 3
        speed = (1 + config.speed * rng.uniform(-1, 1, (size, 1))) * (1 + 0.05 * rng.uniform(-1, 1, label.shape))
        level_db = SPEECH_DB + config.level_db * rng.uniform(-1, 1, label.shape)
        return Row(sounds, margin * is_word, label, speed, material.gain(sounds, level_db))

    def _words(
        self,
        kinds: Numbers,
        again: NDArray[np.bool_],
        one_speaker: NDArray[np.bool_],
        last: Numbers,
        rng: np.random.Generator,
    ) -> Numbers:
        """Draw a recording (mixtures,) for each element that is a word; -1 for the other kinds."""
        material, n = self.material, len(kinds)
        word = np.full(n, -1)
        for number, kind in enumerate(self.kinds[:3]):
            pool = self.pools[kind]
            if len(pool):
                drawn = rng.choice(pool, n, p=self.likely if kind == "command" else None)
                word = np.where(kinds == number, drawn, word)
        word = np.where(again, material.word[np.maximum(last, 0)], word)
        drawn = material.draw_words(np.maximum(word, 0), rng)
        same = material.draw_same_speaker(np.maximum(last, 0), rng)
        keeps = one_speaker & (last >= 0) & (kinds < 2) & ~again
        return np.where(word >= 0, np.where(keeps, same, drawn), -1)

    def _others(self, kinds: Numbers, rng: np.random.Generator) -> Sounds:
        """Draw the sounds (mixtures,) of elements that are a piece of speech or a short sound."""
        material, n = self.material, len(kinds)
        none = np.zeros(n, np.int64)
        found = Sounds(none, none, none)
        if material.has("speech"):
            found = material.cut_speech("speech", n, 0.3, 2.0, rng)
        for source in EVENTS:
            if material.has_pieces(source):
                some = material.crop_pieces(material.draw_pieces(source, n, rng), 0.1, 0.7, rng)
                chosen = (kinds == self.kinds.index("event")) & (rng.random(n) < (1 if source == "procedural" else 0.6))
                found = Sounds(*(np.where(chosen, getattr(some, f), getattr(found, f)) for f in FIELDS))
        return found

    def _running(
        self, row: Row, offset: Numbers, chosen: NDArray[np.bool_], length: int, rng: np.random.Generator
    ) -> tuple[Row, Numbers]:
        """Replace the first element of the `chosen` mixtures by running speech from end to end, in place."""
        speech = self.material.stretches("speech", np.full(len(chosen), length), rng)
        level_db = SPEECH_DB + self.config.level_db * rng.uniform(-1, 1, len(chosen))
        pairs = (
            (row.sounds.recording, speech.recorder),
            (row.sounds.start, speech.start),
            (row.sounds.end, speech.end),
            (row.label, self.unknown),
            (row.speed, 1.0),
            (row.gain, self.material.gain(speech, level_db)),
        )
        for values, new in pairs:
            values[:, 0] = np.where(chosen, new, values[:, 0])
        row.margin[:, :, 0] = np.where(chosen, 0, row.margin[:, :, 0])
        offset[:, 0] = np.where(chosen, 0, offset[:, 0])
        return row, offset

    def _bounds(self, row: Row) -> tuple[Numbers, Numbers]:
        """First sample of each element in its recording and one past the last, margins included."""
        length = self.material.corpus.length[row.sounds.recording]
        start = np.maximum(row.sounds.start - row.margin[0], 0)
        return start, np.minimum(row.sounds.end + row.margin[1], length)

    def _n_samples(self, row: Row) -> Numbers:
        start, end = self._bounds(row)
        return played(end - start, row.speed)

    def _gaps(self, size: int, rng: np.random.Generator) -> Numbers:
        limits = np.array(GAPS_S)[rng.choice(len(GAPS_S), (size, MOST_ELEMENTS), p=GAP_SHARES)]
        gap_s = limits[:, :, 0] + rng.random((size, MOST_ELEMENTS)) * (limits[:, :, 1] - limits[:, :, 0])
        return (gap_s * SAMPLE_RATE_HZ).astype(np.int64)

    def _plan(self, row: Row, offset: Numbers, fits: NDArray[np.bool_], length: int) -> Plan:
        number, slot = np.nonzero(fits)
        start, end = self._bounds(row)
        elements = plan_elements(
            self.material.corpus,
            row=number.astype(np.int64),
            place=offset[number, slot],
            recording=row.sounds.recording[number, slot],
            start=start[number, slot],
            end=end[number, slot],
            speed=row.speed[number, slot],
            gain=row.gain[number, slot],
        )
        return Plan(len(fits), length, elements, no_noise())


def lay_in_a_row(
    n_samples: Numbers, gaps: Numbers, length: int, rng: np.random.Generator
) -> tuple[Numbers, NDArray[np.bool_]]:
    """Place elements in sequence; a random part of the remaining time goes before them, the rest after.

    Args:
        n_samples: (mixtures, elements) length of each element.
        gaps: (mixtures, elements) gap before each element; the first gap is ignored.
        length: samples of a mixture.
    Returns:
        first sample of each element, and which elements fit; both (mixtures, elements).
    """
    gaps = np.where(np.arange(gaps.shape[1]) == 0, 0, gaps)
    end = np.cumsum(gaps + n_samples, 1)
    fits = np.logical_and.accumulate(end <= length, axis=1)
    used = np.where(fits, end, 0).max(1)
    offset = (rng.random(len(used)) * (length - used + 1)).astype(np.int64)
    return offset[:, None] + end - n_samples, fits


def transcripts(labels: Numbers, unknown: int) -> tuple[Numbers, Numbers]:
    """Labels of elements (mixtures, elements) -> tokens padded with 0, and their numbers (mixtures,).

    Elements labelled `NOTHING` are left out; a run of `_unknown_` is one token.
    """
    keep = labels != NOTHING
    before = np.full(len(labels), NOTHING)
    for slot in range(labels.shape[1]):
        here = labels[:, slot]
        keep[:, slot] &= (here != unknown) | (before != unknown)
        before = np.where(here != NOTHING, here, before)
    n_tokens = keep.sum(1)
    order = np.argsort(~keep, axis=1, kind="stable")
    tokens = np.take_along_axis(np.where(keep, labels, 0), order, 1)
    return tokens[:, : max(1, int(n_tokens.max(initial=0)))], n_tokens


class MixtureBatches(Dataset[Mixtures]):
    """The batches of one epoch, determined by `seed` and `epoch`.

    Args:
        material: the training part.
        labels: tokens.
        config, noise: composition of the mixtures and of the noise that is mixed in.
        share: index of this process and number of processes.  Each makes its own mixtures; their lengths agree.
    """

    def __init__(
        self,
        material: Material,
        labels: Sequence[str],
        config: MixtureConfig,
        noise: NoiseMix,
        seed: int,
        epoch: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.material, self.config, self.noise, self.seed, self.epoch = material, config, noise, seed, epoch
        self.maker = MixtureMaker(material, labels, config)
        self.rank, world = share
        self.n_batches = max(1, config.batches // world)

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, position: int) -> Mixtures:
        if position >= len(self):
            raise IndexError(position)
        length_s = float(np.random.default_rng([self.seed, self.epoch, position]).choice(self.config.lengths_s))
        rng = np.random.default_rng([self.seed, self.epoch, position, self.rank])
        length, size = round(length_s * SAMPLE_RATE_HZ), max(1, int(self.config.audio_s / length_s))
        plan, targets, n_targets = self.maker.make(length, size, rng)
        noise = draw_noise(self.material, self.noise, size, rng).of(np.arange(size), self.material.corpus, length)
        return Mixtures(replace(plan, noises=noise), targets, n_targets)


def encode(transcripts: Sequence[Sequence[str]], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Transcripts -> token indices (batch, longest transcript) padded with 0, and their numbers (batch,)."""
    number = {label: n for n, label in enumerate(labels)}
    n_words = torch.tensor([len(t) for t in transcripts])
    targets = torch.zeros(len(transcripts), max(1, int(n_words.max())), dtype=torch.long)
    for row, transcript in zip(targets, transcripts, strict=True):
        row[: len(transcript)] = torch.tensor([number[word] for word in transcript], dtype=torch.long)
    return targets, n_words


class FixedPool:
    """Draws recorded words of one part."""

    def __init__(self, corpus: Corpus, part: str) -> None:
        self.corpus = corpus
        self._clips: dict[str, list[int]] = {}
        self._by_speaker: dict[str, list[int]] = {}
        for i, recording in enumerate(corpus.recordings):
            if recording.part == part and recording.source == "words":
                self._clips.setdefault(recording.word, []).append(i)
                self._by_speaker.setdefault(speaker_of(recording.path), []).append(i)

    def draw(self, word: str, rng: np.random.Generator) -> int:
        """Draw a recording of a word."""
        return pick(self._clips[word], rng)

    def draw_same_speaker(self, like: int, rng: np.random.Generator) -> int:
        """Draw a recording by the speaker of recording `like`."""
        return pick(self._by_speaker[speaker_of(self.corpus.recordings[like].path)], rng)

    def draw_word_like(self, word: str, like: int, rng: np.random.Generator) -> int:
        """A recording of a word by the speaker of recording `like`; by any speaker if that one has none."""
        theirs = self._by_speaker[speaker_of(self.corpus.recordings[like].path)]
        return pick([i for i in theirs if self.corpus.recordings[i].word == word] or self._clips[word], rng)


def pick(items: list[int], rng: np.random.Generator) -> int:
    """Draw one item."""
    return items[rng.integers(len(items))]


@dataclass(frozen=True)
class Element:
    """An element of a mixture: its audio, its label ("" if it is not transcribed) and the bounds of its word."""

    waveform: Waveform
    label: str
    start: int
    end: int


def trim(clip: Waveform, bounds: tuple[int, int], rng: np.random.Generator) -> tuple[Waveform, int, int]:
    """Cut a clip to its word (`bounds`) with faded margins of 20 to 80 ms; return it and the word's bounds in it."""
    start, end = bounds
    before, after = (int(m) for m in rng.uniform(0.02, 0.08, 2) * SAMPLE_RATE_HZ)
    begin = max(0, start - before)
    cut = clip[begin : end + after].copy()
    fade = FADE[: len(cut)]
    cut[: len(fade)] *= fade
    cut[len(cut) - len(fade) :] *= fade[::-1]
    return cut, start - begin, end - begin


def lay(elements: Sequence[Element], gaps_s: Sequence[float], length: int, rng: np.random.Generator) -> Mixture:
    """Place as many elements as fit in sequence, each after its gap; the remaining time is split at random."""
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


def fixed_mixtures(
    corpus: Corpus,
    part: str,
    n: int,
    words: Sequence[str],
    seed: int,
    sizes: tuple[int, int] = (1, 6),
    gaps_s: tuple[float, float] = (0.1, 0.8),
) -> list[Mixture]:
    """Make `n` mixtures of recorded words for evaluation; the same seed gives the same mixtures.

    Every second mixture draws from one speaker and drops words outside `words`, so it may be shorter; if none is left,
    it keeps several speakers.  0.3 to 0.6 s of silence come first, 0.8 s last.

    Args:
        words: vocabulary to draw from.
        sizes: smallest and largest number of words.
        gaps_s: range of the gaps between words.
    """
    rng = np.random.default_rng(seed)
    pool = FixedPool(corpus, part)
    mixtures = []
    for number in range(n):
        size = int(rng.integers(sizes[0], sizes[1] + 1))
        chosen = [pool.draw(str(rng.choice(words)), rng) for _ in range(size)]
        if number % 2:
            same = [pool.draw_same_speaker(chosen[0], rng) for _ in chosen]
            chosen = [i for i in same if corpus.recordings[i].word in words] or chosen
        mixtures.append(_lay_words(corpus, chosen, gaps_s, rng))
    return mixtures


def spoken_mixtures(
    corpus: Corpus,
    part: str,
    sentences: Sequence[Sequence[str]],
    seed: int,
    gaps_s: tuple[float, float] = (0.1, 0.8),
) -> list[Mixture]:
    """Mixtures for evaluation, one for each of `sentences`, reproducible by the seed.

    Every second mixture has one speaker, except for words that this speaker has not recorded.  Gaps, lead-in and
    tail are those of `fixed_mixtures`.
    """
    rng = np.random.default_rng(seed)
    pool = FixedPool(corpus, part)
    mixtures = []
    for number, words in enumerate(sentences):
        chosen = [pool.draw(word, rng) for word in words]
        if number % 2:
            chosen = [pool.draw_word_like(word, chosen[0], rng) for word in words]
        mixtures.append(_lay_words(corpus, chosen, gaps_s, rng))
    return mixtures


def _lay_words(corpus: Corpus, chosen: Sequence[int], gaps_s: tuple[float, float], rng: np.random.Generator) -> Mixture:
    """Recordings in a row, after 0.3 to 0.6 s and before 0.8 s of silence."""
    elements = []
    for index in chosen:
        cut, start, end = trim(corpus[index], (int(corpus.start[index]), int(corpus.end[index])), rng)
        elements.append(Element(set_level(cut, SPEECH_DB), corpus.recordings[index].word, start, end))
    spoken = sum(len(e.waveform) for e in elements)
    gaps = rng.uniform(*gaps_s, len(elements))
    length = spoken + int(gaps[1:].sum() * SAMPLE_RATE_HZ) + 1
    laid = lay(elements, gaps.tolist(), length, rng)
    lead = int(rng.uniform(0.3, 0.6) * SAMPLE_RATE_HZ)
    waveform = np.pad(laid.waveform, (lead, int(0.8 * SAMPLE_RATE_HZ)))
    lead_s = lead / SAMPLE_RATE_HZ
    return Mixture(waveform, tuple(Placed(p.word, p.start_s + lead_s, p.end_s + lead_s) for p in laid.placed))
