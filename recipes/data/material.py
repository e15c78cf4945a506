"""Draws from the corpus, many at a time: words by source, pieces of speech, sounds, noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.data.clips import FRAME, SAMPLE_RATE_HZ, Numbers, Reals
from recipes.data.corpus import CUT, SPOKEN, Corpus, speaker_of
from recipes.data.plan import Elements, plan_noises
from speech.errors import ConfigError

NEAR_FRAMES = 12
"""Speech is cut at the weakest of this many frames: 120 ms."""
QUIETEST_RMS = 1e-4
"""Smallest RMS that is assumed for a sound, which limits its gain."""
MOST_VOICES = 4
"""Largest number of voices in babble noise."""


@dataclass(frozen=True)
class SourceMix:
    """Share of each source in the recordings of a word."""

    voices: float = 0.08
    """Share of neural voices for a word with at least `rare` recordings."""
    voices_rare: float = 0.25
    """The same for words with fewer than `rare` recordings, where these voices add speakers."""
    synthetic: float = 0.05
    """Share of other synthetic voices for a word with at least `rare` recordings."""
    synthetic_rare: float = 0.10
    """The same for words with fewer than `rare` recordings."""
    rare: int = 500
    """A word with fewer recordings is rare; words other than the commands need this many to become a class."""

    def __post_init__(self) -> None:
        for field in ("voices", "voices_rare", "synthetic", "synthetic_rare"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..1")
        for kind in ("", "_rare"):
            if getattr(self, f"voices{kind}") + getattr(self, f"synthetic{kind}") > 1:
                raise ConfigError(f"voices{kind} and synthetic{kind} must not exceed 1 together")


@dataclass(frozen=True)
class Sounds:
    """Sections of recordings: index, first sample, one past the last; three arrays (sounds,)."""

    recording: Numbers
    start: Numbers
    end: Numbers

    def __len__(self) -> int:
        return len(self.recording)

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Sounds":
        return Sounds(self.recording[rows], self.start[rows], self.end[rows])


def joined(sounds: Sequence[Sounds]) -> Sounds:
    """Concatenate several lots of sounds."""
    none = np.zeros(0, np.int64)
    return Sounds(
        np.concatenate([none, *(s.recording for s in sounds)]),
        np.concatenate([none, *(s.start for s in sounds)]),
        np.concatenate([none, *(s.end for s in sounds)]),
    )


class Groups:
    """Items grouped by key, for drawing one item for each of many keys at once.

    Args:
        keys: (items,) key of each item, in 0..n_keys - 1.
        items: (items,)
    """

    def __init__(self, keys: Numbers, items: Numbers, n_keys: int) -> None:
        order = np.argsort(keys, kind="stable")
        self.items = items[order]
        self.count = np.bincount(keys, minlength=n_keys).astype(np.int64)
        self.first = np.cumsum(self.count) - self.count

    def of(self, key: int) -> Numbers:
        """All items of a key."""
        return self.items[self.first[key] : self.first[key] + self.count[key]]

    def draw(self, keys: Numbers, rng: np.random.Generator) -> Numbers:
        """Draw one item for each of `keys`; every key must have at least one."""
        number = (rng.random(len(keys)) * self.count[keys]).astype(np.int64)
        return self.items[self.first[keys] + number]


class Material:
    """The recordings of one part of the corpus, prepared for drawing.

    Args:
        corpus: all recordings.
        part: training or validation.
        mix: share of each source in the recordings of a word.
        commands: the main words of the vocabulary.
    """

    def __init__(self, corpus: Corpus, part: str, mix: SourceMix, commands: Sequence[str]) -> None:
        self.corpus, self.part, self.mix, self.commands = corpus, part, mix, tuple(commands)
        spoken = [i for i, r in enumerate(corpus.recordings) if r.part == part and r.source in SPOKEN]
        self.words = tuple(sorted({corpus.recordings[i].word for i in spoken}))
        number = {word: n for n, word in enumerate(self.words)}
        self.word = np.full(len(corpus), -1, np.int64)
        """(recordings,) index into `words`; -1 if no word is said."""
        self.word[spoken] = [number[corpus.recordings[i].word] for i in spoken]
        source = np.array([SPOKEN.index(corpus.recordings[i].source) for i in spoken], np.int64)
        chosen = np.array(spoken, np.int64)
        n_words = len(self.words)
        self._spoken = Groups(source * n_words + self.word[chosen], chosen, len(SPOKEN) * n_words)
        self.counts = self._spoken.count.reshape(len(SPOKEN), n_words)
        """(sources, words) number of recordings."""
        self.shares = self._shares()
        people = sorted({speaker_of(corpus.recordings[i].path) for i in spoken if source_is_real(corpus, i)})
        name = {speaker: n for n, speaker in enumerate(people)}
        self.speaker = np.full(len(corpus), -1, np.int64)
        real = np.array([i for i in spoken if source_is_real(corpus, i)], np.int64)
        self.speaker[real] = [name[speaker_of(corpus.recordings[i].path)] for i in real]
        self._by_speaker = Groups(self.speaker[real], real, len(people))
        self.recordings = {source: corpus.select(part, source) for source in (*CUT, "noise")}
        self._pieces = {source: self._group_pieces(source) for source in CUT}

    def _shares(self) -> Reals:
        """(words, sources) probability of each source."""
        mix, there = self.mix, self.counts > 0
        rare = self.counts[0] < mix.rare
        shares = np.zeros((len(self.words), len(SPOKEN)))
        shares[:, 1] = np.where(rare, mix.voices_rare, mix.voices)
        shares[:, 2] = np.where(rare, mix.synthetic_rare, mix.synthetic)
        shares[:, 0] = 1 - shares.sum(1)
        shares = np.where(there.T, shares + 1e-9, 0)  # a word with one source always comes from it
        return shares / shares.sum(1, keepdims=True)

    def _group_pieces(self, source: str) -> tuple[Numbers, Groups]:
        """The recordings of a source with pieces, and the indices of their pieces grouped by recording."""
        pieces = self.corpus.pieces
        inside = np.zeros(len(self.corpus), bool)
        inside[self.recordings[source]] = True
        numbers = np.flatnonzero(inside[pieces.recording])
        keys = pieces.recording[numbers]
        return np.unique(keys), Groups(keys, numbers, len(self.corpus))

    def has(self, source: str) -> bool:
        """Whether there are recordings of this source."""
        return len(self.recordings[source]) > 0

    def has_pieces(self, source: str) -> bool:
        """Whether the endpointer found utterances in the recordings of this source."""
        return len(self._pieces[source][0]) > 0

    def number(self, word: str) -> int:
        """Index of a word in `words`; -1 if it is missing."""
        return self.words.index(word) if word in self.words else -1

    def is_rare(self, word: str) -> bool:
        number = self.number(word)
        return number < 0 or int(self.counts[0, number]) < self.mix.rare

    def whole(self, recordings: Numbers) -> Sounds:
        """The bounds of each recording's sound."""
        return Sounds(recordings, self.corpus.start[recordings], self.corpus.end[recordings])

    def draw_words(self, words: Numbers, rng: np.random.Generator) -> Numbers:
        """Draw a recording of each word (indices into `self.words`), with the source drawn by `shares`."""
        source = (rng.random((len(words), 1)) > self.shares[words].cumsum(1)[:, :-1]).sum(1)
        return self._spoken.draw(source * len(self.words) + words, rng)

    def draw_same_speaker(self, recordings: Numbers, rng: np.random.Generator) -> Numbers:
        """Draw a recording by the speaker of each one; the same recording if the speaker is not known."""
        speaker = self.speaker[recordings]
        other = self._by_speaker.draw(np.maximum(speaker, 0), rng) if len(self._by_speaker.items) else recordings
        return np.where(speaker >= 0, other, recordings)

    def draw_evenly(self, word: int, source: int, count: int, rng: np.random.Generator) -> Numbers:
        """Draw `count` recordings of a word from a source, each about equally often."""
        there = self._spoken.of(source * len(self.words) + word)
        rounds = [rng.permutation(there) for _ in range(-(-count // len(there)))] if count else []
        return np.concatenate([np.zeros(0, np.int64), *rounds])[:count]

    def draw_pieces(self, source: str, count: int, rng: np.random.Generator) -> Sounds:
        """Draw utterances cut out of longer recordings; each recording is equally likely."""
        recordings, groups = self._pieces[source]
        number = groups.draw(rng.choice(recordings, count), rng)
        pieces = self.corpus.pieces
        return Sounds(pieces.recording[number], pieces.start[number], pieces.end[number])

    def crop_pieces(self, sounds: Sounds, low_s: float, high_s: float, rng: np.random.Generator) -> Sounds:
        """Replace each sound longer than `high_s` by a random section of `low_s` to `high_s`."""
        length = sounds.end - sounds.start
        wanted = (rng.uniform(low_s, high_s, len(sounds)) * SAMPLE_RATE_HZ).astype(np.int64)
        keep = length <= high_s * SAMPLE_RATE_HZ
        wanted = np.where(keep, length, np.minimum(wanted, length))
        start = sounds.start + (rng.random(len(sounds)) * (length - wanted + 1)).astype(np.int64)
        return Sounds(sounds.recording, start, start + wanted)

    def cut_speech(self, source: str, count: int, low_s: float, high_s: float, rng: np.random.Generator) -> Sounds:
        """Cut pieces of about `low_s` to `high_s` out of running speech, at the weakest frame near each end."""
        corpus = self.corpus
        longest = round(high_s / 0.01) + 2 * NEAR_FRAMES
        n_frames = corpus.length // FRAME
        usable = self.recordings[source]
        usable = usable[n_frames[usable] > longest]
        if not len(usable):
            wanted_s = rng.uniform(low_s, high_s, count)
            return self.stretches(source, (wanted_s * SAMPLE_RATE_HZ).astype(np.int64), rng)
        recording = rng.choice(usable, count, p=n_frames[usable] / n_frames[usable].sum())
        start = (rng.random(count) * (n_frames[recording] - longest)).astype(np.int64)
        start += self._weakest(recording, start)
        end = start + np.round(rng.uniform(low_s, high_s, count) / 0.01).astype(np.int64)
        end = np.minimum(end - NEAR_FRAMES // 2, n_frames[recording] - NEAR_FRAMES)
        end += self._weakest(recording, end)
        return Sounds(recording, start * FRAME, end * FRAME)

    def _weakest(self, recording: Numbers, frame: Numbers) -> Numbers:
        """Offset of the weakest of the `NEAR_FRAMES` frames from `frame` on, for each recording."""
        near = (self.corpus.first_frame[recording] + frame)[:, None] + np.arange(NEAR_FRAMES)
        return self.corpus.power[near].argmin(1)

    def stretches(self, source: str, n_samples: Numbers, rng: np.random.Generator) -> Sounds:
        """Random sections of random recordings of a source, `n_samples` long or as long as a shorter recording."""
        recording = rng.choice(self.recordings[source], len(n_samples))
        length = np.minimum(n_samples, self.corpus.length[recording])
        start = (rng.random(len(n_samples)) * (self.corpus.length[recording] - length + 1)).astype(np.int64)
        return Sounds(recording, start, start + length)

    def gain(self, sounds: Sounds, level_db: Reals) -> Reals:
        """Gain that brings each sound to an RMS of `level_db` dB relative to full scale."""
        rms = self.corpus.rms(sounds.recording, sounds.start, sounds.end)
        return 10 ** (level_db / 20) / np.maximum(rms, QUIETEST_RMS)


@dataclass(frozen=True)
class NoiseMix:
    """Shares of the kinds of noise that are mixed with the words; the rest is recorded noise."""

    babble: float = 0.12
    """Share of two to four people talking at once."""
    events: float = 0.12
    """Share of barking, clocks, sneezes ..."""
    procedural: float = 0.1
    """Share of generated sounds."""

    def __post_init__(self) -> None:
        if min(self.babble, self.events, self.procedural) < 0 or self.babble + self.events + self.procedural > 1:
            raise ConfigError("babble, events and procedural are shares and must not exceed 1 together")


@dataclass(frozen=True)
class NoiseDraws:
    """The noise of many waveforms: up to four recordings each, arrays (waveforms, 4); recording -1 for none."""

    recording: Numbers
    offset: Numbers
    gain: Reals

    def of(self, rows: Numbers, corpus: Corpus, n_samples: int) -> Elements:
        """The noise of the waveforms `rows`, as elements of a plan with `n_samples` per waveform."""
        row, slot = np.nonzero(self.recording[rows] >= 0)
        recording, offset = self.recording[rows][row, slot], self.offset[rows][row, slot]
        return plan_noises(corpus, row.astype(np.int64), recording, offset, self.gain[rows][row, slot], n_samples)


def draw_noise(material: Material, mix: NoiseMix, count: int, rng: np.random.Generator) -> NoiseDraws:
    """Draw noise for `count` waveforms; gains bring each recording to an RMS of 1."""
    corpus = material.corpus
    shares = [
        ("babble", mix.babble if material.has("speech") else 0.0),
        ("events", mix.events if material.has("events") else 0.0),
        ("procedural", mix.procedural if material.has("procedural") else 0.0),
        ("noise", 1 - mix.babble - mix.events - mix.procedural if material.has("noise") else 0.0),
    ]
    total = sum(share for _, share in shares)
    recording = np.full((count, MOST_VOICES), -1, np.int64)
    if total:
        kind = rng.choice(len(shares), count, p=[share / total for _, share in shares])
        n_voices = rng.integers(2, MOST_VOICES + 1, count)
        for number, (name, share) in enumerate(shares):
            rows = np.flatnonzero(kind == number)
            if share and len(rows):
                pool = material.recordings["speech" if name == "babble" else name]
                recording[rows, 0] = rng.choice(pool, len(rows))
                if name == "babble":
                    others = rng.choice(pool, (len(rows), MOST_VOICES))
                    recording[rows] = np.where(np.arange(MOST_VOICES) < n_voices[rows, None], others, -1)
    length = np.where(recording >= 0, corpus.length[recording], 1)
    offset = (rng.random(recording.shape) * length).astype(np.int64)
    flat = np.maximum(recording, 0).ravel()
    rms = corpus.rms(flat, corpus.start[flat], corpus.end[flat]).reshape(recording.shape)
    return NoiseDraws(recording, offset, 1 / np.maximum(rms, QUIETEST_RMS))


def source_is_real(corpus: Corpus, index: int) -> bool:
    """Whether recording `index` was spoken by a person of Speech Commands."""
    return corpus.recordings[index].source == "words"
