"""Recordings on disk -> index, speaker-disjoint parts, one memory-mapped cache, training examples."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from speech.bundle import SILENCE, UNKNOWN
from speech.errors import ConfigError, DataError

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SAMPLE_RATE_HZ = 16000
CLIP = SAMPLE_RATE_HZ
"""Samples of one example: the second that a Speech Commands clip holds."""
WORDS_FOLDER = Path("SpeechCommands/speech_commands_v0.02")
ARCHIVE_FOLDER = Path("speech_commands_test_set_v0.02")
BACKGROUND = "_background_noise_"

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """One audio file and its place in the experiment."""

    path: Path
    word: str
    """What is said; "" where nobody says one of the words."""
    part: str
    """training, validation or testing."""
    source: str
    """words, synthetic, speech, sentences (synthetic speech), noise or rooms."""


@dataclass(frozen=True)
class MixConfig:
    """What one training epoch is made of, in examples."""

    keyword: int = 1500
    """Examples of each of the ten commands."""
    keyword_rare: int = 0
    """Examples of each command with fewer than `rare` recordings; 0: as of the others."""
    word: int = 700
    """Examples of each other word of the vocabulary."""
    unknown_word: int = 2500
    """Whole words outside the vocabulary."""
    unknown_real: float = 0.6
    """Share of these that falls on words with real recordings; the others are only known from synthetic voices."""
    partial: int = 1500
    """Words cut in two, as a sliding window sees them: also `_unknown_`."""
    speech: int = 3000
    """Windows of running speech without commands: also `_unknown_`."""
    snippet: int = 0
    """Pieces of running speech that stand alone like a word: also `_unknown_`."""
    speech_synthetic: float = 0.15
    """Share of synthetic voices in `speech` and `snippet`, where there are any."""
    silence: int = 2500
    """Noise at every level, digital silence included."""
    event: float = 0.0
    """Share of `silence` that is a short sound alone, as of a door or a cup."""
    synthetic: float = 0.06
    """Share of synthetic voices in a word with plenty of recordings."""
    synthetic_rare: float = 0.3
    """The same for words with fewer than `rare` recordings, where synthetic voices add speakers."""
    rare: int = 500
    """Recordings under which a word counts as rare; a word outside the ten needs this many for a class."""
    placed: float = 0.4
    """Share of words that stand anywhere in the window, as a sliding window sees them, not in its middle."""
    neighbour: float = 0.15
    """Share of words that get a piece of other speech before or after them."""

    def __post_init__(self) -> None:
        shares = ("unknown_real", "speech_synthetic", "event", "synthetic", "synthetic_rare", "placed", "neighbour")
        for field in shares:
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..1")


def share(name: str) -> float:
    """A number in 0..1 that depends on nothing but the name: the same split on every machine."""
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) / 2**32


def part_of(group: str, validation: float, testing: float) -> str:
    """The part in which everything of one group (a speaker, a place) stands."""
    position = share(group)
    return "validation" if position < validation else "testing" if position < validation + testing else "training"


def speaker_of(path: Path) -> str:
    """The speaker's hash in the file name of Speech Commands."""
    return path.name.split("_nohash_")[0]


def index_words(root: Path, held_out: float) -> list[Recording]:
    """All words of Speech Commands by the official lists.

    Args:
        root: the folder that holds `SpeechCommands/speech_commands_v0.02`.
        held_out: share of the training speakers of `on` and `off` who join validation with all they said,
            because the official validation list of a partial data set holds only a dozen of these clips.
    Raises:
        DataError: when the folder or its lists are missing; says how to get them.
    """
    folder = root / WORDS_FOLDER
    lists = {part: folder / f"{part}_list.txt" for part in ("validation", "testing")}
    missing = [str(path) for path in lists.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"no Speech Commands under {root}: {missing[0]} is missing; "
            "give the right --data.root, or let recipes.train fetch it with --data.download true (2.3 GB)"
        )
    listed = {line: part for part, path in lists.items() for line in path.read_text().split()}
    recordings = []
    for path in sorted(folder.glob("[!_]*/*.wav")):
        part = listed.get(f"{path.parent.name}/{path.name}", "training")
        recordings.append(Recording(path, path.parent.name, part, "words"))
    if not recordings:
        raise DataError(f"{folder} holds no <word>/<speaker>_nohash_<n>.wav")
    scarce = {
        speaker_of(r.path)
        for r in recordings
        if r.part == "training" and r.word in ("on", "off") and share(speaker_of(r.path)) < held_out
    }
    return [
        Recording(r.path, r.word, "validation", r.source)
        if r.part == "training" and speaker_of(r.path) in scarce
        else r
        for r in recordings
    ]


def index_others(root: Path) -> list[Recording]:
    """Synthetic voices, speech without commands, noise and rooms, as far as they are there.

    Speech is split by speaker, noise and rooms by place, so that validation hears other ones than training.
    """
    found = [
        Recording(path, path.parent.name, "training", "synthetic") for path in sorted(root.glob("synthetic/*/*.wav"))
    ]
    for path in sorted(root.glob("synthetic_sentences/*.wav")):
        found.append(Recording(path, "", "training", "sentences"))
    for path in sorted(root.glob("negative_speech/training/*/*.wav")):
        found.append(Recording(path, "", part_of(path.stem.rsplit("-", 2)[0], 0.1, 0.0), "speech"))
    for path in sorted(root.glob("negative_speech/false_alarm_test/*/*.wav")):
        found.append(Recording(path, "", "testing", "speech"))
    for path in sorted((root / WORDS_FOLDER / BACKGROUND).glob("*.wav")):
        found.append(Recording(path, "", "training", "noise"))
    for path in sorted(root.glob("noise/*/*.wav")):
        found.append(Recording(path, "", part_of(path.stem, 0.1, 0.2), "noise"))
    for path in sorted(root.glob("rooms/*/*.wav")):
        found.append(Recording(path, "", part_of(path.stem.split("_ch")[0], 0.1, 0.2), "rooms"))
    return found


def vocabulary(recordings: Sequence[Recording], rare: int) -> tuple[str, ...]:
    """The ten commands, the other words with at least `rare` training recordings, `_unknown_`, `_silence_`."""
    counts = Counter(r.word for r in recordings if r.source == "words" and r.part == "training")
    others = sorted(word for word, count in counts.items() if count >= rare and word not in KEYWORDS)
    return (*KEYWORDS, *others, UNKNOWN, SILENCE)


class Corpus:
    """Recordings decoded once into one memory-mapped file of 16-bit samples.

    `corpus[i]` is recording i: (samples,), float32 in -1..1.
    """

    def __init__(self, recordings: Sequence[Recording], cache: Path) -> None:
        self.recordings = list(recordings)
        stamps = [(str(r.path), r.path.stat().st_size, r.path.stat().st_mtime_ns) for r in self.recordings]
        key = hashlib.sha1(json.dumps(stamps).encode()).hexdigest()[:16]
        samples, ends = cache / f"{key}.int16", cache / f"{key}.ends.npy"
        if not ends.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            np.save(ends, self._decode(samples))
        self._ends = np.load(ends)
        self._samples = np.memmap(samples, np.int16, mode="r")

    def _decode(self, target: Path) -> NDArray[np.int64]:
        lengths = []
        with open(target, "wb") as file:
            for recording in self.recordings:
                try:
                    samples, rate = soundfile.read(recording.path, dtype="int16")
                except soundfile.LibsndfileError as error:
                    raise DataError(f"{recording.path} can't be read: {error}") from error
                if rate != SAMPLE_RATE_HZ or samples.ndim != 1 or not len(samples):
                    raise DataError(f"{recording.path} must be {SAMPLE_RATE_HZ} Hz mono with at least one sample")
                file.write(samples.tobytes())
                lengths.append(len(samples))
        return np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> Waveform:
        return as_float(self._stored(index))

    def _stored(self, index: int) -> NDArray[np.int16]:
        return self._samples[self._ends[index - 1] if index else 0 : self._ends[index]]

    def crop(self, index: int, rng: np.random.Generator, length: int = CLIP) -> Waveform:
        """`length` samples from a random place of recording `index`; a shorter one goes round and round."""
        stored = self._stored(index)
        if len(stored) < length:
            stored = np.tile(stored, -(-length // len(stored)))
        start = rng.integers(len(stored) - length + 1)
        return as_float(stored[start : start + length])

    def select(self, part: str, source: str, word: str | None = None) -> NDArray[np.int64]:
        """Positions of the recordings of one part and source, and one word if given."""
        chosen = [
            i for i, r in enumerate(self.recordings) if r.part == part and r.source == source and word in (None, r.word)
        ]
        return np.array(chosen, np.int64)


def as_float(samples: NDArray[np.int16]) -> Waveform:
    """16-bit samples -> float32 in -1..1."""
    return samples.astype(np.float32) / np.float32(32768)


def fit(waveform: Waveform, length: int = CLIP) -> Waveform:
    """The waveform centred in `length` samples: zeros around a shorter one, the middle of a longer one."""
    if len(waveform) >= length:
        start = (len(waveform) - length) // 2
        return waveform[start : start + length]
    left = (length - len(waveform)) // 2
    return np.pad(waveform, (left, length - len(waveform) - left))


def extent(waveform: Waveform) -> tuple[int, int]:
    """First and last sample of what stands out of the recording's own noise floor.

    Pre-emphasis raises the weak ends of "off" and "left" above it; a click is too short to count as its peak.
    """
    step = SAMPLE_RATE_HZ // 100
    sharp = waveform - 0.9 * np.pad(waveform, (1, 0))[:-1]
    power = np.square(sharp[: len(sharp) // step * step].reshape(-1, step)).mean(1)
    if len(power) < 3:
        return 0, len(waveform)
    level = np.sqrt(np.convolve(power, np.ones(3) / 3, "same"))
    floor, peak = np.quantile(level, [0.1, 0.95])
    loud = np.flatnonzero(level > max(1.5 * floor, 0.03 * peak))
    return (int(loud[0]) * step, int(loud[-1] + 1) * step) if len(loud) else (0, len(waveform))


def halve(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """The beginning of a word at the end of the window, or its end at the beginning: too little to be told.

    Between 5 and 35 % of the word's energy stays.
    """
    energy = np.cumsum(np.square(waveform, dtype=np.float64))
    kept = rng.uniform(0.05, 0.35) * energy[-1]
    if rng.random() < 0.5:
        cut = int(np.searchsorted(energy, kept))
        return np.pad(waveform[:cut], (len(waveform) - cut, 0))
    cut = int(np.searchsorted(energy, energy[-1] - kept))
    return np.pad(waveform[cut:], (0, cut))


def place(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """The word moved to a random place at which the window still holds all of it."""
    start, end = extent(waveform)
    shift = int(rng.integers(-start, len(waveform) - end + 1))
    moved = np.zeros_like(waveform)
    moved[max(0, shift) : len(waveform) + min(0, shift)] = waveform[max(0, -shift) : len(waveform) - max(0, shift)]
    return moved


def join(waveform: Waveform, speech: Waveform, rng: np.random.Generator) -> Waveform:
    """Other speech right before or right after the word, at about its level, as in running speech."""
    start, end = extent(waveform)
    gap = int(rng.uniform(0.03, 0.25) * SAMPLE_RATE_HZ)
    rms = np.sqrt(np.square(waveform).mean()) / (np.sqrt(np.square(speech).mean()) + 1e-6)
    joined, speech = waveform.copy(), speech * min(rms, 20.0) * rng.uniform(0.5, 1.2)
    if rng.random() < 0.6:
        stop = max(0, start - gap)
        joined[:stop] += speech[len(speech) - stop :]
    else:
        begin = min(len(waveform), end + gap)
        joined[begin:] += speech[: len(waveform) - begin]
    return joined


def isolate(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """A piece of 0.15 to 0.7 s, cut where the sound is weakest, alone at a random place of the window."""
    step = SAMPLE_RATE_HZ // 100
    level = np.square(waveform[: len(waveform) // step * step].reshape(-1, step)).mean(1)
    start = int(level[: len(level) // 4].argmin())
    shortest = start + int(rng.integers(15, 60))
    end = shortest + int(level[shortest : shortest + 12].argmin())
    piece = waveform[start * step : end * step].copy()
    fade = np.linspace(0, 1, step, dtype=np.float32)
    piece[:step] *= fade
    piece[-step:] *= fade[::-1]
    alone = np.zeros_like(waveform)
    at = int(rng.integers(len(waveform) - len(piece) + 1))
    alone[at : at + len(piece)] = piece
    return alone


def procedural_noise(rng: np.random.Generator, length: int = CLIP) -> Waveform:
    """Noise of a random spectral slope, a few tones, a chord that glides or some clicks, peaking at 1."""
    kind = rng.integers(4)
    if kind == 0:
        spectrum = np.fft.rfft(rng.standard_normal(length))
        spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(-0.5, 1.2)
        noise = np.fft.irfft(spectrum, length)
    elif kind == 1:
        pitch_hz = rng.uniform(50, 4000, size=(rng.integers(1, 5), 1))
        phase = 2 * np.pi * pitch_hz * np.arange(length) / SAMPLE_RATE_HZ + rng.uniform(0, 6, pitch_hz.shape)
        noise = np.sin(phase).sum(0) * np.exp(-np.arange(length) * rng.uniform(0, 5) / SAMPLE_RATE_HZ)
    elif kind == 2:
        time = np.arange(length) / SAMPLE_RATE_HZ
        root_hz = rng.uniform(60, 600) * 2 ** (rng.uniform(-1, 1) * time)  # up to an octave in a second
        partials = np.outer(rng.choice([1, 1.25, 1.5, 2], 3), np.arange(1, 7)).ravel()
        phase = 2 * np.pi * np.cumsum(root_hz) / SAMPLE_RATE_HZ
        weight = rng.uniform(0, 1, len(partials)) / partials
        noise = (weight[:, None] * np.sin(partials[:, None] * phase)).sum(0)
        noise *= 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.5, 8) * time + rng.uniform(0, 6))
    else:
        noise = np.zeros(length)
        noise[rng.integers(length, size=rng.integers(1, 12))] = rng.uniform(-1, 1)
        noise = np.convolve(noise, rng.standard_normal(80) * np.exp(-np.arange(80) / rng.uniform(1, 30)), "same")
    return (noise / (np.abs(noise).max() + 1e-9)).astype(np.float32)


def set_level(waveform: Waveform, level_db: float) -> Waveform:
    """The waveform at an RMS of `level_db` dB below full scale."""
    rms = np.sqrt(np.square(waveform).mean()) + 1e-9
    return np.clip(waveform * (10 ** (level_db / 20) / rms), -1, 1)


@dataclass(frozen=True)
class Draw:
    """How one training example comes about."""

    kind: str
    """word, partial, speech, snippet or silence."""
    index: int
    """The recording in the corpus; -1 where procedural noise or nothing is wanted."""
    label: int


class TrainingExamples(Dataset[tuple[Tensor, Tensor, int]]):
    """One epoch of examples, drawn anew from `seed` and `epoch`.

    Item: waveform (16000,), a noise to mix in (16000,), label.
    """

    def __init__(self, corpus: Corpus, labels: Sequence[str], mix: MixConfig, seed: int, epoch: int) -> None:
        self.corpus, self.mix, self.seed, self.epoch = corpus, mix, seed, epoch
        self.speech = corpus.select("training", "speech")
        self.sentences = corpus.select("training", "sentences")
        self.noise = corpus.select("training", "noise")
        self.draws = self._plan(list(labels), np.random.default_rng([seed, epoch]))

    def _plan(self, labels: list[str], rng: np.random.Generator) -> list[Draw]:
        mix, unknown = self.mix, labels.index(UNKNOWN)
        draws: list[Draw] = []
        by_word = {source: self._by_word(source) for source in ("words", "synthetic")}
        for label, word in enumerate(labels):
            if word in (UNKNOWN, SILENCE):
                continue
            count = mix.keyword if word in KEYWORDS else mix.word
            if mix.keyword_rare and word in KEYWORDS and len(by_word["words"].get(word, [])) < mix.rare:
                count = mix.keyword_rare
            draws += [Draw("word", i, label) for i in self._pick(by_word, word, count, rng)]
        draws += [Draw("word", i, unknown) for i in self._pick_outside(by_word, set(labels), rng)]
        whole = self.corpus.select("training", "words")
        draws += [Draw("partial", int(i), unknown) for i in rng.choice(whole, mix.partial)]
        for kind, count in (("speech", mix.speech), ("snippet", mix.snippet)) if len(self.speech) else ():
            n_synthetic = int(rng.binomial(count, mix.speech_synthetic)) if len(self.sentences) else 0
            chosen = rng.choice(self.speech, count - n_synthetic).tolist()
            chosen += rng.choice(self.sentences, n_synthetic).tolist() if n_synthetic else []
            draws += [Draw(kind, i, unknown) for i in chosen]
        silence = rng.choice(self.noise, mix.silence) if len(self.noise) else np.full(mix.silence, -1)
        silence[rng.random(mix.silence) < 0.2] = -1
        draws += [Draw("silence", int(i), labels.index(SILENCE)) for i in silence]
        return draws

    def _pick_outside(
        self, by_word: dict[str, dict[str, list[int]]], known: set[str], rng: np.random.Generator
    ) -> list[int]:
        """Recordings of words outside the vocabulary, each word of a kind (really recorded or not) about as often."""
        real = sorted(set(by_word["words"]) - known)
        synthetic = sorted(set(by_word["synthetic"]) - known - set(real))
        n_real = rng.binomial(self.mix.unknown_word, self.mix.unknown_real if synthetic else 1.0)
        picked = []
        for words, n in ((real, n_real), (synthetic, self.mix.unknown_word - n_real)):
            drawn = Counter(str(word) for word in rng.choice(words, n)) if words else Counter[str]()
            for word, count in sorted(drawn.items()):
                picked += self._pick(by_word, word, count, rng)
        return picked

    def _by_word(self, source: str) -> dict[str, list[int]]:
        grouped: dict[str, list[int]] = {}
        for index in self.corpus.select("training", source):
            grouped.setdefault(self.corpus.recordings[index].word, []).append(int(index))
        return grouped

    def _pick(
        self, by_word: dict[str, dict[str, list[int]]], word: str, count: int, rng: np.random.Generator
    ) -> list[int]:
        """`count` recordings of a word, each real one about equally often, synthetic ones by their share."""
        real, synthetic = (by_word[source].get(word, []) for source in ("words", "synthetic"))
        wanted = self.mix.synthetic_rare if len(real) < self.mix.rare else self.mix.synthetic
        n_synthetic = 0 if not synthetic else count if not real else int(rng.binomial(count, wanted))
        picked = list(rng.choice(synthetic, n_synthetic)) if n_synthetic else []
        while real and len(picked) < count:
            picked += list(rng.permutation(real)[: count - len(picked)])
        return [int(i) for i in picked]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        draw = self.draws[position]
        rng = np.random.default_rng([self.seed, self.epoch, position])
        noise = self._noise(rng)
        waveform = self._waveform(draw, rng)
        return (
            torch.from_numpy(np.ascontiguousarray(waveform)),
            torch.from_numpy(np.ascontiguousarray(noise)),
            draw.label,
        )

    def _noise(self, rng: np.random.Generator) -> Waveform:
        if not len(self.noise) or rng.random() < 0.1:
            return procedural_noise(rng)
        return self.corpus.crop(int(rng.choice(self.noise)), rng)

    def _waveform(self, draw: Draw, rng: np.random.Generator) -> Waveform:
        if draw.kind == "silence":
            if draw.index < 0 and rng.random() < 0.3:
                return np.zeros(CLIP, np.float32)
            source = procedural_noise(rng) if draw.index < 0 else self.corpus.crop(draw.index, rng)
            if rng.random() < self.mix.event:
                source = isolate(source, rng)
            return set_level(source, rng.uniform(-90, -3))
        if draw.kind in ("speech", "snippet"):
            running = self.corpus.crop(draw.index, rng)
            return running if draw.kind == "speech" else isolate(running, rng)
        waveform = fit(self.corpus[draw.index])
        if draw.kind == "partial":
            waveform = halve(waveform, rng)
        elif rng.random() < self.mix.placed:
            waveform = place(waveform, rng)
        if len(self.speech) and rng.random() < self.mix.neighbour:
            waveform = join(waveform, self.corpus.crop(int(rng.choice(self.speech)), rng), rng)
        return waveform


class FixedExamples(Dataset[tuple[Tensor, int]]):
    """Validation or test examples that never change.

    Every word of the part as it is, `per_kind` windows of speech, `per_kind` of noise from -70 to -5 dB.
    Item: waveform (16000,), label.
    """

    def __init__(self, corpus: Corpus, labels: Sequence[str], part: str, per_kind: int, seed: int) -> None:
        names, rng = list(labels), np.random.default_rng(seed)
        self.items: list[tuple[Waveform, int]] = []
        for i in corpus.select(part, "words"):
            word = corpus.recordings[i].word
            self.items.append((fit(corpus[i]), names.index(word if word in names else UNKNOWN)))
        speech, noise = corpus.select(part, "speech"), corpus.select(part, "noise")
        for _ in range(per_kind if len(speech) else 0):
            self.items.append((corpus.crop(int(rng.choice(speech)), rng), names.index(UNKNOWN)))
        for _ in range(per_kind if len(noise) else 0):
            silence = set_level(corpus.crop(int(rng.choice(noise)), rng), rng.uniform(-70, -5))
            self.items.append((silence, names.index(SILENCE)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        waveform, label = self.items[position]
        return torch.from_numpy(np.ascontiguousarray(waveform, np.float32)), label
