"""Training by two processes on the CPU, each with its own share of an epoch, both heads."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(
    ("config", "steps"),
    [("smoke", ["--data.batch_size", "8"]), ("smoke_connected", ["--data.mixtures.batches", "24"])],
)
def test_two_processes_share_an_epoch(root: Path, tmp_path: Path, config: str, steps: list[str]) -> None:
    lengths = {}
    for devices in (1, 2):
        run = tmp_path / f"run{devices}"
        command = [
            sys.executable, "-m", "recipes.train", "--config", f"recipes/configs/{config}.yaml", "--data.root",
            str(root), "--run", str(run), "--trainer.max_epochs", "1", "--export", "false", *steps,
            "--trainer.devices", str(devices), "--trainer.enable_progress_bar", "false",
        ]  # fmt: skip
        command += ["--trainer.strategy", "ddp"] if devices > 1 else []
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        lengths[devices] = state["global_step"]
        assert all(torch.isfinite(x).all() for x in state["state_dict"].values())
        figures = json.loads((run / "validation.json").read_text())["figures"]
        counted = figures["keywords" if config == "smoke" else "commands"]["total"]
        lengths[f"counted{devices}"] = counted
        (curves,) = run.glob("curves-*/metrics.csv")
        with open(curves, newline="") as file:
            assert any(line.get("train/loss") for line in csv.DictReader(file))
    assert lengths[2] == lengths[1] // 2, "half the steps, each of twice as many examples"
    assert lengths["counted1"] == lengths["counted2"] > 0, "validation counts every example once"
