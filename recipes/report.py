"""A self-contained HTML page of the results of `recipes.evaluate`: tables, pictures, the hardest clips as audio."""

import base64
import html
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import soundfile

from recipes.data.clips import SAMPLE_RATE_HZ
from recipes.metrics import Share, summarize
from recipes.protocols.connected import Connected, error_rate
from recipes.protocols.live import Live, Outcome
from recipes.protocols.own import Own
from recipes.protocols.speed import Speed
from recipes.protocols.words import Evaluation, Mistake
from speech.bundle import BundleInfo

Result = Evaluation | Live | Connected | Own | Speed

HARDEST = 20
"""Number of clips with players: the errors with the highest confidence."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
audio { height: 2rem; vertical-align: middle; }
pre { overflow-x: auto; background: #f6f6f6; padding: .7rem; }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; text is escaped."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def picture(path: Path) -> str:
    """A PNG embedded in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'


def player(mistake: Mistake) -> str:
    """A clip embedded as an audio player, and how it was classified."""
    wav = io.BytesIO()
    soundfile.write(wav, mistake.waveform, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    data = base64.b64encode(wav.getvalue()).decode()
    source = f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>'
    return f"<li>{source} {html.escape(str(mistake))}</li>"


def words_section(result: Evaluation) -> str:
    summary = summarize(result.confusion, result.labels, result.commands)
    figures = [
        ("accuracy, all classes", str(result.accuracy)),
        ("accuracy, official classes", str(summary.accuracy)),
        ("keywords right", str(summary.keywords)),
        ("unknown taken for a command", str(summary.unknown_as_command)),
        ("silence taken for a command", str(summary.silence_as_command)),
        ("calibration error of the confidence", f"{result.calibration_error:.3f}"),
    ]
    said, heard = result.confusion.sum(1), result.confusion.sum(0)
    rows = [
        (label, str(Share(int(result.confusion[i, i]), int(said[i]))),
         f"{100 * result.confusion[i, i] / max(1, heard[i]):.1f} %")
        for i, label in enumerate(result.labels) if said[i]
    ]  # fmt: skip
    return table(("", "value [95 %]"), figures) + table(("class", "recall [95 %]", "precision"), rows)


def live_section(result: Live) -> str:
    thresholds = ", ".join(f"{word} {value:g}" for word, value in result.thresholds.items())
    sections = [f"<p>Thresholds of the bundle: {html.escape(thresholds)}.</p>", *map(outcome_section, result.outcomes)]
    return "".join(sections)


def outcome_section(outcome: Outcome) -> str:
    scenes = [
        (c.scene.name, str(c.misses), c.false_alarms, *(f"{x} ms" for x in c.latencies_ms), c.why)
        for c in outcome.conditions
    ]
    alarms = [(a.source, str(a.rate)) for a in outcome.alarms]
    page = (
        f"<h3>Commands within {outcome.after_talk_s:g} s after talk are rejected</h3>"
        + table(("scene", "missed [95 %]", "false", "latency, median", "95 %", "why missed"), scenes)
        + table(("audio without commands", "false alarms [95 %]"), alarms)
    )
    if outcome.curve:
        names = [c.scene.name for c in outcome.conditions]
        curve = [
            (p.threshold, str(p.speech), str(p.sounds), *(f"{100 * p.misses[n].value:.1f}" for n in names))
            for p in outcome.curve
        ]
        page += "<p>The same with one threshold for all words: false alarms, and misses in percent.</p>"
        page += table(("threshold", "in speech", "in noise and events", *names), curve)
    return page


def connected_section(result: Connected) -> str:
    rows = [(c.name, str(error_rate(c.whole)), str(error_rate(c.live))) for c in result.conditions]
    sizes = [(f"{n} words, clean", str(error_rate(some)), "") for n, some in result.by_size.items()]
    return table(("command error rate", "whole recording", "live"), rows + sizes)


def section(result: Result) -> str:
    """Heading and tables of one protocol."""
    title = str(result).splitlines()[0]
    if isinstance(result, Evaluation):
        body = words_section(result)
    elif isinstance(result, Live):
        body = live_section(result)
    elif isinstance(result, Connected):
        body = connected_section(result)
    else:
        assert isinstance(result, Speed)
        body = "<pre>" + html.escape("\n".join(str(result).splitlines()[1:])) + "</pre>"
    return f"<h2>{html.escape(title)}</h2>{body}"


def write_report(
    folder: Path, model: Path, info: BundleInfo, results: Sequence[Result], pictures: dict[int, list[Path]]
) -> Path:
    """Write `folder`/index.html; `pictures` maps the index of a result to its pictures.  Returns the page's path."""
    parts = []
    mistakes: list[Mistake] = []
    for number, result in enumerate(results):
        parts.append(section(result) + "".join(map(picture, pictures.get(number, []))))
        if isinstance(result, Evaluation):
            mistakes += result.mistakes
    if mistakes:
        hardest = sorted(mistakes, key=lambda m: m.confidence, reverse=True)[:HARDEST]
        parts.append(
            f"<h2>Hardest clips</h2><p>Errors with the highest confidence.</p><ol>{''.join(map(player, hardest))}</ol>"
        )
    bundle = [
        ("head", info.head), ("words", " ".join(info.words)), ("window", f"{info.window_s:g} s"),
        ("threshold", info.threshold), ("parameters", info.training.get("parameters", "-")),
    ]  # fmt: skip
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(model.name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{html.escape(model.name)}</h1><p>Measured {now} by recipes.evaluate. Brackets hold 95 % Wilson intervals."
        f"</p>{table(('bundle', ''), bundle)}{''.join(parts)}</html>"
    )
    target = folder / "index.html"
    target.write_text(page)
    return target
