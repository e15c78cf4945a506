"""What people write: text files up to a maximum size, names of words, thresholds; and the folders of their files."""

import os
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from speech.errors import ConfigError, tell

Value = TypeVar("Value")

MOST_BYTES = 1 << 20
"""Largest file that is read, in bytes."""
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'"))
"""Typographic apostrophes, as keyboards and word processors write them -> '."""
FOLDERS = {
    "data": ("XDG_DATA_HOME", ".local/share", "Library/Application Support", "LOCALAPPDATA"),
    "config": ("XDG_CONFIG_HOME", ".config", ".config", "APPDATA"),
}
"""Where a user's files are: XDG variable, folder of the home, the same on macOS, and Windows' variable."""


def read_text(path: str | Path) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        ConfigError: it can't be read, is too large or not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 from byte {error.start} on") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.  Raises ConfigError if it can't be read or is not valid TOML."""
    try:
        return tomllib.loads(read_text(path))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def normal_name(text: str) -> str:
    """The form in which names of words are compared and stored, whoever wrote them and on which keyboard.

    NFC, lower case, ' for every apostrophe, single spaces, none at the ends.  Applying it twice changes nothing.
    """
    lower = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    return " ".join(lower.translate(APOSTROPHES).split())


def match_name(name: str, known: Iterable[str]) -> str:
    """The one of the known names with the same normal form; the normal form itself if there is none."""
    wanted = normal_name(name)
    return next((word for word in known if normal_name(word) == wanted), wanted)


def match_keys(table: Mapping[str, Value], known: Iterable[str]) -> dict[str, Value]:
    """A table whose keys are names of words, each as `match_name` gives it.  Raises ConfigError if two are the same."""
    known, matched = list(known), dict[str, Value]()
    for name, value in table.items():
        word = match_name(name, known)
        if word in matched:
            raise ConfigError(f"{word!r} is there twice")
        matched[word] = value
    return matched


def user_folder(kind: Literal["data", "config"]) -> Path:
    """This package's folder among the user's own files; a relative path in the environment is ignored, as XDG asks.

    Raises:
        ConfigError: the user has no home folder.
    """
    xdg, linux, mac, windows = FOLDERS[kind]
    named = Path(os.environ.get(windows if sys.platform == "win32" else xdg, ""))
    if named.is_absolute():
        return named / "speech"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        raise ConfigError(f"there is no home folder to keep the user's {kind} in: set HOME, or name a folder")
    return home / (mac if sys.platform == "darwin" else linux) / "speech"


def thresholds_file(model: str) -> Path:
    """Where `speech.calibrate` keeps the thresholds of a model.  Raises ConfigError if there is no home."""
    return user_folder("config") / f"thresholds-{model}.toml"


def load_thresholds(
    path: str | Path, words: Iterable[str], key: str = "", tell: Callable[[str], None] = tell
) -> dict[str, float]:
    """Read the table `[thresholds]` of a TOML file: for each word the lowest confidence that is accepted.

    Args:
        path: a file as `speech.calibrate` writes it.
        words: the words that can be recognised; others in the file are ignored with a note.
        key: `BundleInfo.key` of the model; a file for another model is used with a note.
        tell: takes the notes.
    Raises:
        ConfigError: the file can't be read or is malformed, or a value is outside 0..1.
    """
    words, values = list(words), read_toml(path)
    table = values.get("thresholds")
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"{path} lacks a table [thresholds] with lines such as: yes = 0.8")
    if key and values.get("model", key) != key:
        tell(f"note: {path} was calibrated for another model")
    for word, value in table.items():
        if type(value) not in (int, float) or not 0 < value <= 1:
            raise ConfigError(f"{path}: the threshold of {word!r} must be a number in 0..1, not {value!r}")
    try:
        table = match_keys(table, words)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if strange := [word for word in table if word not in words]:
        tell(f"note: {path}: the model does not know {', '.join(map(repr, strange))}; it knows {', '.join(words)}")
    return {word: float(value) for word, value in table.items() if word in words}
