"""Tells PyInstaller what a program with this package needs besides its code."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """Where PyInstaller finds hook-speech.py; named in pyproject.toml."""
    return [str(Path(__file__).parent)]
