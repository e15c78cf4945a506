"""Read what people write - text files up to a maximum size, names of words - and find the folders of their files."""

import os
import sys
import tomllib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from speech.errors import ConfigError

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
