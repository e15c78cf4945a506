"""Read text files that users write, up to a maximum size."""

import tomllib
from pathlib import Path
from typing import Any

from speech.errors import ConfigError

MOST_BYTES = 1 << 20
"""Largest file that is read, in bytes."""


def read_text(path: str | Path) -> str:
    """The text of a file.  Raises ConfigError if it can't be read, is too large or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
        return data.decode()
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
