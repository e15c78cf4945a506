"""Training by two processes on the CPU, each with its own share of an epoch, both heads."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ten import KEYWORDS

from recipes.data.corpus import Corpus
from recipes.data.mixtures import fixed_mixtures


def n_official(_: Corpus) -> int:
    return 30  # ten commands by three speakers


def n_said(corpus: Corpus) -> int:
    return sum(len(mixture.placed) for mixture in fixed_mixtures(corpus, "validation", 20, KEYWORDS, seed=0))


@pytest.mark.parametrize(
    ("config", "setting", "strategy", "n_steps", "figure", "n_validated"),
    [
        # 10 * 40 commands, 60 + 20 others, 40 + 20 + 5 of silence: 545 examples, 2 * 16 in a step
        ("smoke", ["--data.batch_size", "16"], "ddp", 545 // 32, "keywords", n_official),
        ("smoke_connected", ["--data.mixtures.batches", "24"], "ddp_fork", 24 // 2, "commands", n_said),
    ],
)
def test_two_processes_share_an_epoch(
    root: Path,
    corpus: Corpus,
    tmp_path: Path,
    config: str,
    setting: list[str],
    strategy: str,
    n_steps: int,
    figure: str,
    n_validated: Callable[[Corpus], int],
) -> None:
    command = [
        sys.executable, "-m", "recipes.train", "--config", f"recipes/configs/{config}.yaml", "--data.root", str(root),
        "--run", str(tmp_path), "--trainer.max_epochs", "1", "--export", "false", *setting,
        "--trainer.devices", "2", "--trainer.strategy", strategy, "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == n_steps, "half the steps that one process would take"
    assert all(torch.isfinite(x).all() for x in state["state_dict"].values())
    figures = json.loads((tmp_path / "validation.json").read_text())["figures"]
    assert figures[figure]["total"] == n_validated(corpus), "validation counts every example once"
