"""PyInstaller hook: the data files that a program with this package needs."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """Folder of hook-speech.py; pyproject.toml registers this function with PyInstaller."""
    return [str(Path(__file__).parent)]
