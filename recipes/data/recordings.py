"""The recordings of the data folder: an index with speaker-disjoint parts."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.data.procedural import procedural_sound
from speech.bundle import SILENCE, UNKNOWN
from speech.errors import ConfigError, DataError
from speech.segment import SAMPLE_RATE_HZ
from speech.settings import read_text

SCARCE = ("on", "off")
"""Commands with perhaps only a dozen validation clips in a partial data set."""
WORDS_FOLDER = Path("SpeechCommands/speech_commands_v0.02")
ARCHIVE_FOLDER = Path("speech_commands_test_set_v0.02")
BACKGROUND = "_background_noise_"
HOMOPHONES = {"know": "no", "write": "right", "won": "one"}
"""Words of the synthetic voices that sound like another word and are labelled as that word."""
MADE = ("voices", "synthetic")
"""Sources of synthetic words: a neural synthesiser, other synthesisers."""
SPOKEN = ("words", *MADE)
"""Sources of single words to train on."""
PARTS = ("training", "validation", "testing")
RARE = 500
"""A word with fewer training recordings by people is rare; words other than the commands need this many to become a
class."""


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

    @property
    def speaker(self) -> str:
        """The speaker's hash in a file name of Speech Commands."""
        return self.path.name.split("_nohash_")[0]


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


def waves(root: Path, pattern: str) -> Iterator[Path]:
    """The WAV files among `root.glob(pattern)`, sorted; the hidden files that a Mac leaves (`._x.wav`) are no audio."""
    for path in sorted(root.glob(pattern)):
        if path.suffix.lower() == ".wav" and not path.name.startswith("."):
            yield path


def index_words(root: Path, held_out: float = 0.0) -> list[Recording]:
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
    listed = {line: part for part, path in lists.items() for line in path.read_text("utf-8").split()}
    recordings = []
    for path in waves(folder, "[!_]*/*"):
        part = listed.get(f"{path.parent.name}/{path.name}", "training")
        recordings.append(Recording(path, path.parent.name, part, "words"))
    if not recordings:
        raise DataError(f"{folder} holds no <word>/<speaker>_nohash_<n>.wav")
    known = [r for r in recordings if r.part == "training" and r.word in SCARCE]
    moved = {r.speaker for r in known if share(r.speaker) < held_out}
    return [replace(r, part="validation") if r.part == "training" and r.speaker in moved else r for r in recordings]


def index_others(root: Path) -> list[Recording]:
    """Index synthetic voices, speech without commands, words recorded at home, events, noise and rooms.

    Folders that are missing are skipped.  Speech is split by speaker, noise and rooms by place, so that validation
    has other speakers and places than training.
    """
    found = [
        Recording(path, HOMOPHONES.get(path.parent.name, path.parent.name), "training", source)
        for source in ("synthetic", "voices")
        for path in waves(root, f"{source}/*/*")
    ]

    def add(pattern: str, part: str | Callable[[Path], str], source: str) -> None:
        for path in waves(root, pattern):
            word = path.parent.name if source == "home" else ""
            found.append(Recording(path, word, part if isinstance(part, str) else part(path), source))

    add("home/*/*", "validation", "home")
    add("synthetic_sentences/*", "training", "sentences")
    add("negative_speech/training/*/*", lambda path: part_of(path.stem.rsplit("-", 2)[0], 0.1, 0.0), "speech")
    add("negative_speech/false_alarm_test/*/*", "testing", "speech")
    for part in PARTS:
        add(f"events/{part}/*/*", part, "events")
    add(f"{WORDS_FOLDER / BACKGROUND}/*", "training", "noise")
    add("noise/*/*", lambda path: part_of(path.stem, 0.1, 0.2), "noise")
    add("rooms/*/*", lambda path: part_of(path.stem.split("_ch")[0], 0.1, 0.2), "rooms")
    return found


def index_procedural(count: int) -> list[Recording]:
    """Index `count` generated sounds for training; the name of each path is the seed of its sound."""
    return [Recording(Path(f"procedural/{number}"), "", "training", "procedural") for number in range(count)]


def read_recording(recording: Recording) -> NDArray[np.float32]:
    """The samples of a recording: (time,) float32 in -1..1 at 16 kHz.

    Raises:
        DataError: it can't be read, is not 16 kHz mono, or is empty.
    """
    if recording.source == "procedural":
        return procedural_sound(int(recording.path.name))
    try:
        samples, rate_hz = soundfile.read(recording.path, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{recording.path} can't be read: {error}") from error
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1 or not len(samples):
        raise DataError(f"{recording.path} must be {SAMPLE_RATE_HZ} Hz mono with at least one sample")
    return np.asarray(samples, np.float32)


def tell_bad(bad: Sequence[str], most: int = 10) -> None:
    """List recordings that can't be used on stderr."""
    for line in bad[:most]:
        print(line, file=sys.stderr)
    if len(bad) > most:
        print(f"... and {len(bad) - most} more", file=sys.stderr)


def read_commands(path: Path) -> tuple[str, ...]:
    """Read a list of commands: one per line; text after `#` is ignored.

    Raises:
        ConfigError: the file can't be read, is empty, lists a word twice or one that begins with `_`.
    """
    commands = [word for line in read_text(path).splitlines() if (word := line.split("#")[0].strip())]
    if not commands or len(set(commands)) < len(commands) or any(word.startswith("_") for word in commands):
        raise ConfigError(f"{path} must list commands, one per line, each once, none beginning with _")
    return tuple(commands)


def vocabulary(recordings: Sequence[Recording], commands: Sequence[str], rare: int = RARE) -> tuple[str, ...]:
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
