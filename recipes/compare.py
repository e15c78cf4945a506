"""Train variants of a recipe and compare them: `python -m recipes.compare VARIANTS.yaml --data.root DIR`.

VARIANTS.yaml maps the name of each variant to the settings of `recipes.train` that differ from the config:

    base: {}
    wide: {model.network.hidden: 256}
    slow: {model.learning_rate: 0.0005}

All variants have the same seed and the same number of epochs or minutes.  The folder OUT receives a run folder for
each variant, `comparison.md` and `comparison.json`, written anew after each variant; one that fails is reported and
left out.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.metrics import Share, write_json
from speech.errors import ConfigError, SpeechError, exit_status
from speech.settings import read_text

SHOWN = (
    "score", "keywords", "on", "off", "home", "unknown_as_command", "speech_as_command", "events_as_command",
    "noise_as_command", "commands",
)  # fmt: skip
"""Columns of the table; those that no run has are left out.  `commands` belongs to the CTC head."""


@dataclass(frozen=True)
class Variant:
    """A trained variant."""

    name: str
    settings: Mapping[str, Any]
    epochs: int
    figures: Mapping[str, Any]
    """As `recipes.task` writes them to `validation.json`."""


def read_variants(path: Path) -> dict[str, dict[str, Any]]:
    """Read the variants: name -> settings.

    Raises:
        ConfigError: the file is not a mapping of names to mappings.
    """
    try:
        variants = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
        raise ConfigError(f"{path} must map names to settings, as in `wide: {{model.network.hidden: 256}}`")
    return {str(name): settings for name, settings in variants.items()}


def run_folder(out: Path, name: str) -> Path:
    """Folder in which a variant is trained."""
    return out / "".join(c if c.isalnum() else "_" for c in name)


def train_variant(name: str, settings: Mapping[str, Any], common: Sequence[str], out: Path) -> Variant:
    """Train one variant in a separate process; its output goes to `log.txt` in the run folder.

    Raises:
        SpeechError: training failed; the message names the log.
    """
    run = run_folder(out, name)
    run.mkdir(parents=True, exist_ok=True)
    arguments = [f"--{key}={json.dumps(value)}" if not isinstance(value, str) else f"--{key}={value}"
                 for key, value in settings.items()]  # fmt: skip
    command = [sys.executable, "-m", "recipes.train", *common, *arguments, "--run", str(run), "--export", "false"]
    with open(run / "log.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SpeechError(f"training of {name} failed, see {run / 'log.txt'}")
    left = json.loads((run / "validation.json").read_text())
    return Variant(name, settings, left["epoch"] + 1, left["figures"])


def cell(figure: Any) -> str:
    """Format a figure: a share with its interval, or a single number; both in percent."""
    if figure is None:
        return "-"
    if isinstance(figure, Mapping):
        share = Share(figure["hits"], figure["total"])
        low, high = share.interval
        return f"{100 * share.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" if share.total else "-"
    return f"{100 * figure:.2f}"


def table(variants: Sequence[Variant]) -> str:
    """A Markdown table with one row per variant; percent, with 95 % Wilson intervals."""
    columns = [name for name in SHOWN if any(name in variant.figures for variant in variants)]
    rows = [["variant", "settings", "epochs", *columns], ["---"] * (3 + len(columns))]
    for variant in variants:
        settings = ", ".join(f"`{key}: {value}`" for key, value in variant.settings.items()) or "as the config"
        cells = [cell(variant.figures.get(name)) for name in columns]
        rows.append([variant.name, settings, str(variant.epochs), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def compare(arguments: argparse.Namespace, more: Sequence[str]) -> int:
    """Train all variants and write the table after each; returns 1 if one failed."""
    wanted = read_variants(arguments.variants)
    common = ["--config", str(arguments.config), *more, "--trainer.enable_progress_bar", "false"]
    if arguments.minutes:
        common += ["--trainer.max_epochs=-1", f"--trainer.max_time=00:{clock(arguments.minutes)}"]
    else:
        common += ["--trainer.max_epochs", str(arguments.epochs)]
    trained: dict[str, Variant] = {}
    with ThreadPoolExecutor(arguments.parallel) as pool:
        jobs = {pool.submit(train_variant, name, v, common, arguments.out): name for name, v in wanted.items()}
        for job in as_completed(jobs):
            try:
                trained[jobs[job]] = job.result()
            except SpeechError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            variants = [trained[name] for name in wanted if name in trained]
            (arguments.out / "comparison.md").write_text(table(variants), encoding="utf-8")
            write_json(arguments.out / "comparison.json", variants)
    if trained:
        print(table(variants), end="")
    return int(len(trained) < len(wanted))


def clock(minutes: float) -> str:
    """Minutes as HH:MM:SS, the part of the trainer's `max_time` after the days."""
    seconds = round(60 * minutes)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.compare", description=__doc__.split("\n")[0], allow_abbrev=False,
        epilog="Other options go to recipes.train, such as --data.root DIR.",
    )  # fmt: skip
    parser.add_argument("variants", type=Path, metavar="VARIANTS.yaml", help="file with the settings of each variant")
    parser.add_argument("--config", type=Path, default=Path("recipes/configs/commands.yaml"), help="shared config")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=4, help="epochs per variant (default 4)")
    length.add_argument("--minutes", type=float, help="minutes of training per variant, instead of epochs")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="variants trained at once (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the runs")
    arguments, more = parser.parse_known_args(argv)
    return exit_status(lambda: compare(arguments, more))


if __name__ == "__main__":
    sys.exit(main())
