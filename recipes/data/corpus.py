"""Recordings on disk -> an index with speaker-disjoint parts, and one memory-mapped bank of samples."""

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.data.clips import (
    CLIP,
    FRAME,
    SAMPLE_RATE_HZ,
    Numbers,
    Reals,
    Waveform,
    as_float,
    cut_talk,
    cut_utterances,
    extent,
    frame_power,
    procedural_sound,
)
from speech.bundle import SILENCE, UNKNOWN
from speech.errors import ConfigError, DataError

SCARCE = ("on", "off")
"""Commands with perhaps only a dozen validation clips in a partial data set."""
WORDS_FOLDER = Path("SpeechCommands/speech_commands_v0.02")
ARCHIVE_FOLDER = Path("speech_commands_test_set_v0.02")
BACKGROUND = "_background_noise_"
HOMOPHONES = {"know": "no", "write": "right", "won": "one"}
"""Words of the synthetic voices that sound like another word and are labelled as that word."""
SPOKEN = ("words", "voices", "synthetic")
"""Sources of single words to train on: people, a neural synthesiser, other synthesisers."""
CUT = ("speech", "sentences", "events", "procedural")
"""Sources whose recordings hold several sounds; an endpointer would cut them apart."""
PARTS = ("training", "validation", "testing")
MANY = 1000
"""Smallest number of recordings that is measured in several processes."""
VERSION = 5
"""Version of the cache files: raise it when the measurements of a recording change."""


@dataclass(frozen=True)
class Recording:
    """One audio file and its place in the experiment."""

    path: Path
    word: str
    """The word that is said; "" if there is none."""
    part: str
    """training, validation or testing."""
    source: str
    """words, voices, synthetic, speech, sentences (synthetic speech), home, events, procedural, noise or rooms."""


def share(name: str) -> float:
    """A number in 0..1 that depends only on the name, so that the split is the same on every machine."""
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) / 2**32


def part_of(group: str, validation: float, testing: float) -> str:
    """The part that all recordings of one group (a speaker, a place) belong to.

    Args:
        group: its name.
        validation, testing: shares of the groups in 0..1; the rest are training.
    """
    position = share(group)
    return "validation" if position < validation else "testing" if position < validation + testing else "training"


def speaker_of(path: Path) -> str:
    """The speaker's hash in a file name of Speech Commands."""
    return path.name.split("_nohash_")[0]


def index_words(root: Path, held_out: float) -> list[Recording]:
    """Index all words of Speech Commands, split by the official lists.

    Args:
        root: folder that holds `SpeechCommands/speech_commands_v0.02`.
        held_out: share of the training speakers of `on` and `off` that are moved to validation with all their clips,
            because the official validation list of a partial data set holds only a dozen clips of these words.
    Raises:
        DataError: the folder or its lists are missing, or it holds no clips; the message says how to get them.
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
        if r.part == "training" and r.word in SCARCE and share(speaker_of(r.path)) < held_out
    }
    return [
        Recording(r.path, r.word, "validation", r.source)
        if r.part == "training" and speaker_of(r.path) in scarce
        else r
        for r in recordings
    ]


def index_others(root: Path) -> list[Recording]:
    """Index synthetic voices, speech without commands, words recorded at home, events, noise and rooms.

    Folders that are missing are skipped.  Speech is split by speaker, noise and rooms by place, so that validation
    has other speakers and places than training.
    """
    found = [
        Recording(path, HOMOPHONES.get(path.parent.name, path.parent.name), "training", source)
        for source in ("synthetic", "voices")
        for path in sorted(root.glob(f"{source}/*/*.wav"))
    ]

    def add(pattern: str, part: str | Callable[[Path], str], source: str) -> None:
        for path in sorted(root.glob(pattern)):
            word = path.parent.name if source == "home" else ""
            found.append(Recording(path, word, part if isinstance(part, str) else part(path), source))

    add("home/*/*.wav", "validation", "home")
    add("synthetic_sentences/*.wav", "training", "sentences")
    add("negative_speech/training/*/*.wav", lambda path: part_of(path.stem.rsplit("-", 2)[0], 0.1, 0.0), "speech")
    add("negative_speech/false_alarm_test/*/*.wav", "testing", "speech")
    for part in PARTS:
        add(f"events/{part}/*/*.wav", part, "events")
    add(f"{WORDS_FOLDER / BACKGROUND}/*.wav", "training", "noise")
    add("noise/*/*.wav", lambda path: part_of(path.stem, 0.1, 0.2), "noise")
    add("rooms/*/*.wav", lambda path: part_of(path.stem.split("_ch")[0], 0.1, 0.2), "rooms")
    return found


def index_procedural(count: int) -> list[Recording]:
    """Index `count` generated sounds for training; the name of each path is the seed of its sound."""
    return [Recording(Path(f"procedural/{number}"), "", "training", "procedural") for number in range(count)]


def read_commands(path: Path) -> tuple[str, ...]:
    """Read a list of commands: one per line; text after `#` is ignored.

    Raises:
        ConfigError: the file can't be read, is empty, lists a word twice or one that begins with `_`.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    commands = [word for line in lines if (word := line.split("#")[0].strip())]
    if not commands or len(set(commands)) < len(commands) or any(word.startswith("_") for word in commands):
        raise ConfigError(f"{path} must list commands, one per line, each once, none beginning with _")
    return tuple(commands)


def vocabulary(recordings: Sequence[Recording], rare: int, commands: Sequence[str]) -> tuple[str, ...]:
    """The commands, the other words with at least `rare` training recordings, `_unknown_`, `_silence_`.

    Raises:
        DataError: there is no recording of a command to train on.
    """
    spoken = {r.word for r in recordings if r.part == "training" and r.source in SPOKEN}
    missing = [word for word in commands if word not in spoken]
    if missing:
        raise DataError(f"no recording of {', '.join(missing)} to train on: add some, or take the word off the list")
    counts = Counter(r.word for r in recordings if r.source == "words" and r.part == "training")
    others = sorted(word for word, count in counts.items() if count >= rare and word not in commands)
    return (*commands, *others, UNKNOWN, SILENCE)


@dataclass(frozen=True)
class Measured:
    """The samples and measurements of one recording."""

    samples: NDArray[np.int16]
    bounds: tuple[int, int]
    """Start and end of its sound, in samples."""
    power: NDArray[np.float32]
    """(frames,) mean power of each 10 ms."""
    pieces: Numbers
    """(pieces, 2) start and end of each utterance that an endpointer would cut out; empty for single words."""


def read_recording(recording: Recording) -> NDArray[np.int16]:
    """Read the samples of a recording.

    Raises:
        DataError: it can't be read, is not 16 kHz mono, or is empty.
    """
    if recording.source == "procedural":
        return np.round(procedural_sound(int(recording.path.name)) * 32767).astype(np.int16)
    try:
        samples, rate_hz = soundfile.read(recording.path, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{recording.path} can't be read: {error}") from error
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1 or not len(samples):
        raise DataError(f"{recording.path} must be {SAMPLE_RATE_HZ} Hz mono with at least one sample")
    return np.asarray(samples, np.int16)


def measure(recording: Recording) -> Measured:
    """Read a recording and measure where its sounds are."""
    samples = read_recording(recording)
    waveform = as_float(samples)
    pieces = np.zeros((0, 2), np.int64)
    if recording.source in CUT and recording.part != "testing":
        pieces = cut_talk(waveform) if recording.source == "speech" else cut_utterances(waveform)
    return Measured(samples, extent(waveform), frame_power(waveform), pieces)


def n_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def measured(recordings: Sequence[Recording]) -> Iterator[Iterable[Measured]]:
    """Measure recordings and yield the results in order; many recordings are shared out over all processors."""
    n_processes = n_processors()
    if n_processes < 2 or len(recordings) < MANY or "fork" not in multiprocessing.get_all_start_methods():
        yield map(measure, recordings)
        return
    # Forked, because a fresh process would import the whole training program again.  The children use numpy only.
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("fork")) as pool:
        yield pool.map(measure, recordings, chunksize=64)


@dataclass(frozen=True)
class Pieces:
    """Sounds that an endpointer would cut out of longer recordings; three arrays (pieces,)."""

    recording: Numbers
    start: Numbers
    end: Numbers


class Corpus:
    """Recordings decoded once into one memory-mapped file of 16-bit samples, with their measurements.

    `corpus[i]` is recording i: (samples,), float32 in -1..1.

    Attributes:
        samples: all recordings one after the other, int16.
        begin, length: (recordings,) position and length of each in `samples`.
        start, end: (recordings,) bounds of each recording's sound, counted from its `begin`.
        pieces: utterances within the longer recordings.
    """

    def __init__(self, recordings: Sequence[Recording], cache: Path) -> None:
        self.recordings = list(recordings)
        key = hashlib.sha1(json.dumps([VERSION, *map(stamp, self.recordings)]).encode()).hexdigest()[:16]
        samples, known = cache / f"{key}.int16", cache / f"{key}.npz"
        if not known.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            self._decode(samples, known)
        with np.load(known) as arrays:
            self.length: Numbers = arrays["length"]
            self.start: Numbers
            self.end: Numbers
            self.start, self.end = arrays["bounds"].T
            self.power: NDArray[np.float32] = arrays["power"]
            self.pieces = Pieces(*arrays["pieces"].T)
        self.begin: Numbers = np.cumsum(self.length) - self.length
        n_frames = self.length // FRAME
        self.first_frame: Numbers = np.cumsum(n_frames) - n_frames
        self._energy: Reals = np.concatenate([[0.0], np.cumsum(self.power, dtype=np.float64)])
        self.samples = np.memmap(samples, np.int16, mode="c")  # never written to, but torch needs a writable array

    def _decode(self, samples: Path, known: Path) -> None:
        length, bounds, power, pieces = [], [], [], []
        # Written under a temporary name until complete, because several processes may do this at once.
        part, part_known = (path.with_name(f"{os.getpid()}-{path.name}") for path in (samples, known))
        with open(part, "wb") as file, measured(self.recordings) as found:
            for number, one in enumerate(found):
                file.write(one.samples.tobytes())
                length.append(len(one.samples))
                bounds.append(one.bounds)
                power.append(one.power)
                pieces.append(np.column_stack([np.full(len(one.pieces), number), one.pieces]))
        part.replace(samples)
        np.savez(
            part_known,
            length=np.array(length, np.int64),
            bounds=np.array(bounds, np.int64).reshape(-1, 2),
            power=np.concatenate(power or [np.zeros(0, np.float32)]),
            pieces=np.concatenate(pieces or [np.zeros((0, 3), np.int64)]),
        )
        part_known.replace(known)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> Waveform:
        return as_float(self._stored(index))

    def _stored(self, index: int) -> NDArray[np.int16]:
        return self.samples[self.begin[index] : self.begin[index] + self.length[index]]

    def crop(self, index: int, rng: np.random.Generator, length: int = CLIP) -> Waveform:
        """Cut `length` samples at a random position of recording `index`; a shorter recording is repeated."""
        stored = self._stored(index)
        if len(stored) < length:
            stored = np.tile(stored, -(-length // len(stored)))
        start = rng.integers(len(stored) - length + 1)
        return as_float(stored[start : start + length])

    def select(self, part: str, source: str, word: str | None = None) -> Numbers:
        """Indices of the recordings of one part and source, and of one word if given."""
        chosen = [
            i for i, r in enumerate(self.recordings) if r.part == part and r.source == source and word in (None, r.word)
        ]
        return np.array(chosen, np.int64)

    def rms(self, recording: Numbers, start: Numbers, end: Numbers) -> Reals:
        """RMS of each recording from sample `start` to `end`, widened to full 10 ms frames."""
        n_frames = self.length[recording] // FRAME
        first = np.minimum(start // FRAME, np.maximum(0, n_frames - 1))
        last = np.maximum(np.minimum(-(-end // FRAME), n_frames), first + 1)
        base = self.first_frame[recording]
        energy = self._energy[np.minimum(base + last, len(self.power))] - self._energy[base + first]
        return np.sqrt(np.maximum(energy, 0) / (last - first))


def stamp(recording: Recording) -> tuple[str, str, int, int]:
    """Identity of a recording: if it changes, the cache is out of date."""
    if recording.source == "procedural":
        return str(recording.path), recording.source, 0, 0
    status = recording.path.stat()
    return str(recording.path), recording.source, status.st_size, status.st_mtime_ns
