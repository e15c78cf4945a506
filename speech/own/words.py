"""Own words: taught by a person, stored as recordings, and recognised together with the words of a bundle.

A word is a folder with WAV files and a `word.json` that lists them.  That file is replaced atomically, so a word is
complete or absent.  Reading a word executes no code from it.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import soundfile

from speech.errors import AudioError, ConfigError
from speech.own.matching import WordModel, fit
from speech.own.similarity import Similarity, Vectors
from speech.segment import SAMPLE_RATE_HZ
from speech.sound.files import Block, read

FORMAT = 1
"""Version of the format of `word.json`."""
SETTINGS = "word.json"
LONGEST_NAME = 40
"""Characters."""
MOST_RECORDINGS = 100

Embed = Callable[[Block], Vectors]
"""An utterance (time,) at `SAMPLE_RATE_HZ` -> its embedding."""


def check_name(name: str) -> str:
    """Normalise a name: lower case, single spaces.

    Raises:
        ConfigError: it is not a valid name.
    """
    kept = " ".join(unicodedata.normalize("NFC", name).lower().split())
    if not kept or len(kept) > LONGEST_NAME or not re.fullmatch(r"[^\W_]+(?:[ '\-][^\W_]+)*", kept):
        raise ConfigError(
            f"{name!r} can't be the name of a word: letters and digits, at most {LONGEST_NAME}, "
            "with single spaces, hyphens or apostrophes between them"
        )
    return kept


@dataclass(frozen=True)
class OwnWord:
    """An own word."""

    name: str
    recordings: tuple[Path, ...]
    """WAV files, each with one utterance as the endpointer cut it."""
    model: WordModel | None
    """How it is recognised; None if it has not been learnt from the recordings yet."""
    key: str
    """`Similarity.key` of the bundle that the model was learnt with."""

    def utterances(self) -> list[Block]:
        """The recordings, each (time,) at `SAMPLE_RATE_HZ`.  Raises AudioError when one can't be read."""
        return [read(path, SAMPLE_RATE_HZ) for path in self.recordings]

    @classmethod
    def read(cls, folder: Path) -> "OwnWord":
        """Read a word from its folder.  Raises ConfigError if this version can't read it."""
        path = folder / SETTINGS
        try:
            kept: Any = json.loads(path.read_text("utf-8"))
            if kept["format"] != FORMAT:
                raise ConfigError(f"{path} has format {kept['format']!r}, but this version reads {FORMAT}")
            names = [str(name) for name in kept["recordings"]]
            if not names or any(name != Path(name).name for name in names):
                raise ValueError("it must name recordings in its own folder")
            model = WordModel.from_dict(kept["model"]) if kept.get("model") else None
            recordings = tuple(folder / name for name in names)
            return cls(check_name(kept["name"]), recordings, model, str(kept.get("key", "")))
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise error if isinstance(error, ConfigError) else ConfigError(f"{path} is damaged: {error}") from error

    def write(self, folder: Path) -> None:
        """Replace `word.json` atomically.  Raises OSError."""
        kept = {
            "format": FORMAT,
            "name": self.name,
            "recordings": [path.name for path in self.recordings],
            "key": self.key,
            "model": self.model.as_dict() if self.model else None,
        }
        part = folder / f".{SETTINGS}.part"
        try:
            part.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")
            part.replace(folder / SETTINGS)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def default_folder() -> Path:
    """Folder of the user's own words, in the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("speech", appauthor=False) / "own"


class OwnWords:
    """The words in a folder.

        recognizer = Recognizer.load(own=OwnWords.load())

    Args:
        folder: folder of the words; need not exist.
        words: the words in it.
        notices: messages for the user, such as about a word that can't be read.
    """

    def __init__(self, folder: Path, words: Iterable[OwnWord] = (), notices: Iterable[str] = ()) -> None:
        self.folder, self.notices = folder, list(notices)
        self._words = {word.name: word for word in words}

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "OwnWords":
        """All words of a folder, by default the user's.  A damaged word is left out, with a notice."""
        folder = default_folder() if folder is None else Path(folder)
        words, notices = [], []
        for path in sorted(folder.glob(f"word-*/{SETTINGS}")):
            try:
                words.append(OwnWord.read(path.parent))
            except ConfigError as error:
                notices.append(f"{error}; teach the word again, or remove {path.parent}")
        return cls(folder, words, notices)

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[OwnWord]:
        return iter(self._words.values())

    def __contains__(self, name: object) -> bool:
        return name in self._words

    def __getitem__(self, name: str) -> OwnWord:
        return self._words[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._words)

    def folder_of(self, name: str) -> Path:
        return self.folder / f"word-{name}"

    def learn(self, similarity: Similarity, embed: Embed) -> None:
        """Learn words from their recordings if they have no model, or one from another bundle.

        A word whose recordings can't be read is left out, with a notice.
        """
        again = [word for word in self if word.model is None or word.key != similarity.key]
        learnt = []
        for word in again:
            try:
                model = fit(similarity, embed, word.utterances())
            except AudioError as error:
                self.notices.append(f"own word {word.name!r} is left out: {error}; teach it again")
                del self._words[word.name]
                continue
            self._words[word.name] = replace(word, model=model, key=similarity.key)
            learnt.append(word.name)
            with suppress(OSError):  # then it is learnt again next time
                self._words[word.name].write(self.folder_of(word.name))
        if learnt:
            names = ", ".join(learnt)
            self.notices.append(f"the model has changed; learnt again from their recordings: {names}")

    def add(self, name: str, utterances: Sequence[Block], similarity: Similarity, embed: Embed) -> OwnWord:
        """Learn and save a word.  It replaces a word of the same name.

        Args:
            name: see `check_name`.
            utterances: 1 to `MOST_RECORDINGS`, each (time,) at `SAMPLE_RATE_HZ`, as the endpointer cuts them.
        Raises:
            ConfigError: an invalid name, a wrong number of utterances, or the folder can't be written; an existing
                word of that name then stays as it was.
        """
        name = check_name(name)
        if not 1 <= len(utterances) <= MOST_RECORDINGS:
            raise ConfigError(f"{len(utterances)} recordings of {name!r}; it takes 1 to {MOST_RECORDINGS}")
        model, folder = fit(similarity, embed, utterances), self.folder_of(name)
        before = set(folder.glob("*.wav"))
        first = 1 + max((int(p.stem) for p in before if p.stem.isdecimal()), default=0)
        recordings = [folder / f"{first + n}.wav" for n in range(len(utterances))]
        word = OwnWord(name, tuple(recordings), model, similarity.key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, utterance in zip(recordings, utterances, strict=True):
                soundfile.write(path, utterance, SAMPLE_RATE_HZ, subtype="PCM_16")
            word.write(folder)
        except BaseException as error:  # also on Ctrl-C: save everything or nothing
            _remove(recordings, folder)
            if isinstance(error, OSError | soundfile.LibsndfileError):
                why = getattr(error, "strerror", None) or getattr(error, "error_string", error)
                raise ConfigError(f"can't save {name!r} to {folder}: {why}") from error
            raise
        _remove(before, folder)
        self._words[name] = word
        return word

    def forget(self, name: str) -> None:
        """Remove a word and its recordings.  Raises ConfigError if it does not exist or can't be removed."""
        if name not in self._words and not (self.folder_of(name) / SETTINGS).exists():
            raise ConfigError(f"no own word {name!r}; there {self._there}")
        folder = self.folder_of(name)
        try:
            (folder / SETTINGS).unlink()
        except OSError as error:
            raise ConfigError(f"can't remove {folder}: {error.strerror}") from error
        _remove([*folder.glob("*.wav"), *folder.glob(".*.part")], folder)
        self._words.pop(name, None)

    @property
    def _there(self) -> str:
        return f"are {', '.join(self.names)}" if self._words else "are none"


def _remove(paths: Iterable[Path], folder: Path) -> None:
    """Remove the files, and the folder if it is then empty."""
    for path in paths:
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
