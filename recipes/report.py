"""A self-contained HTML page of the results of `recipes.evaluate`: tables, pictures, the hardest clips as audio."""

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Protocol

import soundfile

from recipes.protocols.words import Evaluation, Mistake
from speech.bundle import BundleInfo
from speech.segment import SAMPLE_RATE_HZ

HARDEST = 20
"""Number of clips with players: the errors with the highest confidence."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; }
audio { height: 2rem; vertical-align: middle; }
pre { overflow-x: auto; background: #f6f6f6; padding: .7rem; font-size: 13px; }
"""


class Result(Protocol):
    """What every protocol measures: the first line of its text is a title, the rest a table."""

    def __str__(self) -> str: ...


def embedded(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def player(mistake: Mistake) -> str:
    """A clip embedded as an audio player, and how it was classified."""
    wav = io.BytesIO()
    soundfile.write(wav, mistake.waveform, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    source = embedded("audio/wav", wav.getvalue())
    return f'<li><audio controls preload="none" src="{source}"></audio> {escape(str(mistake))}</li>'


def section(result: Result, pictures: Sequence[Path]) -> str:
    """Heading, table and pictures of one protocol."""
    title, _, table = str(result).partition("\n")
    images = [f'<img alt="{escape(p.stem)}" src="{embedded("image/png", p.read_bytes())}">' for p in pictures]
    return f"<h2>{escape(title)}</h2><pre>{escape(table)}</pre>{''.join(images)}"


def write_report(
    folder: Path, model: Path, info: BundleInfo, measured: Sequence[tuple[Result, Sequence[Path]]]
) -> Path:
    """Write `folder`/index.html about the results, each with its pictures.  Returns the page's path."""
    sections = [section(result, pictures) for result, pictures in measured]
    mistakes = [mistake for result, _ in measured if isinstance(result, Evaluation) for mistake in result.mistakes]
    if mistakes:
        hardest = sorted(mistakes, key=lambda m: m.confidence, reverse=True)[:HARDEST]
        players = "".join(map(player, hardest))
        sections.append(f"<h2>Hardest clips</h2><p>Errors with the highest confidence.</p><ol>{players}</ol>")
    facts: dict[str, Any] = {
        "head": info.head, "words": " ".join(info.words), "threshold": info.threshold,
        "parameters": info.training.get("parameters", "-"),
    }  # fmt: skip
    bundle = "; ".join(f"{name}: {value}" for name, value in facts.items())
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "index.html"
    target.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(model.name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{escape(model.name)}</h1><p>{escape(bundle)}.</p><p>Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by "
        f"recipes.evaluate. Brackets hold 95 % intervals.</p>{''.join(sections)}</html>",
        encoding="utf-8",
    )
    return target
