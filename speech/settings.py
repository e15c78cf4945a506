"""Read what people write: text files up to a maximum size, and names of words."""

import tomllib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speech.errors import ConfigError

MOST_BYTES = 1 << 20
"""Largest file that is read, in bytes."""
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'"))
"""Typographic apostrophes, as keyboards and word processors write them -> '."""


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
