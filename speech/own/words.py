"""Own words on disk: taught by a person, stored as recordings, and recognised together with the words of a bundle.

A word is a folder `word-<name>` with WAV files and a `word.json` that lists them.  That file is replaced atomically, so
a word is complete or absent.  Reading a word executes no code from it.
"""

import json
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from speech.errors import ConfigError
from speech.segment import SAMPLE_RATE_HZ
from speech.settings import normal_name, read_text, user_folder
from speech.sound.files import Block, read

FORMAT = 1
"""Version of the format of `word.json`."""
SETTINGS = "word.json"
LONGEST_NAME = 40
"""Characters."""
MOST_RECORDINGS = 100
JOINERS = "\u200c\u200d"
"""Characters without width that belong to the spelling of words, as in Persian and Hindi."""

Stamp = tuple[tuple[str, int], ...]
"""Name and time of change of each word in a folder."""

_writing = threading.Lock()
"""Words are written one at a time, whichever thread teaches them."""


def check_name(name: str) -> str:
    """The normal form of a name, see `normal_name`.

    Raises:
        ConfigError: it is not a valid name.
    """
    kept = normal_name(name)
    parts = kept.replace("-", " ").replace("'", " ").split(" ")
    kinds = ["".join(unicodedata.category(c)[0] for c in part if c not in JOINERS) for part in parts]
    if len(kept) > LONGEST_NAME or not all(kind.strip("LNM") == "" and kind[:1] in ("L", "N") for kind in kinds):
        raise ConfigError(
            f"{name!r} can't be the name of a word: letters and digits, at most {LONGEST_NAME}, "
            "with single spaces, hyphens or apostrophes between them"
        )
    return kept


@dataclass(frozen=True)
class OwnWord:
    """An own word: where its recordings are."""

    name: str
    recordings: tuple[Path, ...]
    """WAV files, each with one utterance as the endpointer cut it."""
    refused: tuple[Path, ...] = ()
    """Counter-examples: utterances that sound like the word and are not."""
    changed_ns: int = 0
    """When it was last taught; with the name, it identifies these recordings."""

    def utterances(self) -> list[Block]:
        """The recordings, each (time,) at `SAMPLE_RATE_HZ`.  Raises AudioError when one can't be read."""
        return [read(path, SAMPLE_RATE_HZ) for path in self.recordings]

    def counterexamples(self) -> list[Block]:
        return [read(path, SAMPLE_RATE_HZ) for path in self.refused]

    @classmethod
    def read(cls, folder: Path) -> "OwnWord":
        """Read a word from its folder.  Raises ConfigError if it is damaged, a copy, or of a later version."""
        path = folder / SETTINGS
        try:
            kept: Any = json.loads(read_text(path))
            if kept["format"] != FORMAT:
                raise ConfigError(f"{path} has format {kept['format']!r}, but this version reads {FORMAT}")
            name, files = check_name(kept["name"]), [kept["recordings"], kept.get("refused", [])]
            if not files[0] or any(file != Path(file).name for file in [*files[0], *files[1]]):
                raise ValueError("it must name recordings in its own folder")
            if normal_name(folder.name) != f"word-{name}":
                raise ConfigError(f"{folder} is a copy of the word {name!r}")
            recordings, refused = (tuple(folder / file for file in some) for some in files)
            return cls(name, recordings, refused, path.stat().st_mtime_ns)
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error


class OwnWords(dict[str, OwnWord]):
    """The words in a folder by name, as they were when it was read.

        recognizer = Recognizer.load(own=OwnWords.load())

    Args:
        folder: folder of the words; need not exist.
        words: the words in it.
        notices: messages for the user, such as about a word that can't be read.
        stamp: see `stamp_of`.
    """

    def __init__(
        self, folder: Path, words: Iterable[OwnWord] = (), notices: Iterable[str] = (), stamp: Stamp = ()
    ) -> None:
        super().__init__({word.name: word for word in words})
        self.folder, self.notices, self.stamp = folder, list(notices), stamp

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "OwnWords":
        """All words of a folder, by default the user's.  A damaged word is left out, with a notice.

        Raises:
            ConfigError: the folder can't be read, or the user has none.
        """
        folder = user_folder("data") / "own" if folder is None else Path(folder)
        words, notices, stamp = [], [], stamp_of(folder)
        for name, _ in stamp:
            try:
                words.append(OwnWord.read(folder / name))
            except ConfigError as error:
                notices.append(f"{error}; it is left out: teach the word again, or remove {folder / name}")
        return cls(folder, words, notices, stamp)

    @property
    def has_changed(self) -> bool:
        """Whether words were taught or removed since the folder was read, by this program or another one."""
        with suppress(ConfigError):
            return stamp_of(self.folder) != self.stamp
        return False

    def folder_of(self, name: str) -> Path:
        return self.folder / f"word-{name}"

    def add(self, name: str, utterances: Sequence[Block], refused: Sequence[Block] = ()) -> OwnWord:
        """Save a word.  It replaces a word of the same name; all threads of a program may do so at once.

        Args:
            name: see `check_name`.
            utterances: 1 to `MOST_RECORDINGS`, each (time,) at `SAMPLE_RATE_HZ`, as the endpointer cuts them.
            refused: the counter-examples, at most as many.
        Raises:
            ConfigError: an invalid name, a wrong number of utterances, or the folder can't be written; an existing
                word of that name then stays as it was.
        """
        name = check_name(name)
        for n, least in ((len(utterances), 1), (len(refused), 0)):
            if not least <= n <= MOST_RECORDINGS:
                raise ConfigError(f"{n} recordings of {name!r}; it takes 1 to {MOST_RECORDINGS}")
        folder = self.folder_of(name)
        with _writing:
            before = {*folder.glob("*.wav")}
            first = 1 + max((int(p.stem) for p in before if p.stem.isdecimal()), default=0)
            paths = [folder / f"{first + n}.wav" for n in range(len(utterances) + len(refused))]
            kept = {
                "format": FORMAT, "name": name,
                "recordings": [path.name for path in paths[: len(utterances)]],
                "refused": [path.name for path in paths[len(utterances) :]],
            }  # fmt: skip
            part = folder / f".{SETTINGS}.part"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for path, utterance in zip(paths, [*utterances, *refused], strict=True):
                    soundfile.write(path, utterance, SAMPLE_RATE_HZ, subtype="PCM_16")
                part.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")
                part.replace(folder / SETTINGS)
            except BaseException as error:  # also on Ctrl-C: save everything or nothing
                _remove([*paths, part], folder)
                if isinstance(error, OSError | soundfile.LibsndfileError):
                    why = getattr(error, "strerror", None) or getattr(error, "error_string", error)
                    raise ConfigError(f"can't save {name!r} to {folder}: {why}") from error
                raise
            _remove(before, folder)
            self[name] = OwnWord.read(folder)
        return self[name]

    def forget(self, name: str) -> None:
        """Remove a word and its recordings.  Raises ConfigError if it does not exist or can't be removed."""
        folder = self.folder_of(name)
        with _writing:
            if not folder.exists():
                there = f"are {', '.join(self)}" if self else "are none"
                raise ConfigError(f"no own word {name!r}; there {there}")
            try:
                (folder / SETTINGS).unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(f"can't remove {folder}: {error.strerror}") from error
            _remove([*folder.glob("*.wav"), *folder.glob(".*.part")], folder)
            self.pop(name, None)


def stamp_of(folder: Path) -> Stamp:
    """What the folder holds: it differs after a word was taught or removed.  Raises ConfigError: it can't be read."""

    def changed_ns(path: Path) -> int:
        with suppress(OSError):
            return path.stat().st_mtime_ns
        return 0  # it can't be read, which is noticed when the word is

    try:
        names = sorted(path.name for path in folder.iterdir() if path.name.startswith("word-"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"can't read {folder}: {error.strerror}") from error
    return tuple((name, changed_ns(folder / name / SETTINGS)) for name in names)


def _remove(paths: Iterable[Path], folder: Path) -> None:
    """Remove the files, and the folder if it is then empty."""
    for path in paths:
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
