"""Training by two processes on the CPU, each with its own share of an epoch, both heads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.task import CommandData


@pytest.mark.parametrize(
    ("config", "strategy", "figure"), [("smoke", "ddp", "keywords"), ("smoke_connected", "ddp_fork", "commands")]
)
def test_two_processes_share_an_epoch(root: Path, tmp_path: Path, config: str, strategy: str, figure: str) -> None:
    command = [
        sys.executable, "-m", "recipes.train", "--config", f"recipes/configs/{config}.yaml", "--data.root", str(root),
        "--run", str(tmp_path), "--trainer.max_epochs", "1", "--export", "false", "--data.steps", "8",
        "--trainer.devices", "2", "--trainer.strategy", strategy, "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 8
    assert state["speech"]["examples"] == 8 * 2 * {"smoke": 32, "smoke_connected": 16}[config]
    assert all(torch.isfinite(x).all() for x in state["state_dict"].values())
    figures = json.loads((tmp_path / "validation.json").read_text())["figures"]
    head = "classification" if figure == "keywords" else "ctc"
    alone = CommandData(root, head=head, batch_size=16, per_kind=20, held_out=0, rare=50)
    alone.setup("fit")
    plans = [plan for plan, _ in alone.held_back if head == "ctc"]
    said = sum(int((row[:n] < 10).sum()) for plan in plans for row, n in zip(plan.label, plan.extra, strict=True))
    expected = 30 if figure == "keywords" else said  # ten commands by three speakers
    assert figures[figure]["total"] == expected, "validation counts every example once"
