"""The list of commands that training, evaluation and synthesis share."""

from argparse import ArgumentParser
from pathlib import Path

from speech.errors import ConfigError
from speech.settings import read_text

WORDS = Path(__file__).parent / "words.txt"
"""The ten commands."""


def add_words_option(parser: ArgumentParser) -> None:
    """Add the option `--words FILE`; `read_commands` reads the file."""
    parser.add_argument(
        "--words", type=Path, default=WORDS, metavar="FILE", help="list of the commands (default: recipes/words.txt)"
    )


def read_commands(path: Path) -> tuple[str, ...]:
    """Read a list of commands: one per line; text after `#` is ignored.

    Raises:
        ConfigError: the file can't be read, is empty, lists a word twice or one that begins with `_`.
    """
    commands = [word for line in read_text(path).splitlines() if (word := line.split("#")[0].strip())]
    if not commands or len(set(commands)) < len(commands) or any(word.startswith("_") for word in commands):
        raise ConfigError(f"{path} must list commands, one per line, each once, none beginning with _")
    return tuple(commands)
