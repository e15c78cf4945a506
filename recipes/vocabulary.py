"""The list of commands that training, evaluation and synthesis share."""

from argparse import ArgumentParser
from pathlib import Path

WORDS = Path(__file__).parent / "words.txt"
"""The ten commands."""


def add_words_option(parser: ArgumentParser) -> None:
    """Add the option `--words FILE`; `recipes.data.recordings.read_commands` reads the file."""
    parser.add_argument(
        "--words", type=Path, default=WORDS, metavar="FILE", help="list of the commands (default: recipes/words.txt)"
    )
