"""The Lightning task: targets, schedule, figures of validation."""

import math
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from ten import KEYWORDS

from recipes import train
from recipes.data.elements import NONE, Plan
from recipes.heads import LABEL_SMOOTHING, TRAINED, WORD_WEIGHT, figures
from recipes.metrics import Share
from recipes.task import CommandTask, warm_cosine
from speech.bundle import SILENCE, UNKNOWN
from speech.model.networks import Classifier, NetworkConfig

LABELS = (*KEYWORDS, "bed", UNKNOWN, SILENCE)
N = len(LABELS)


def test_the_loss_of_words_counts_examples_with_a_word() -> None:
    torch.manual_seed(0)
    network = Classifier(N, NetworkConfig(channels=(4, 6, 8), width=8, hidden=8), n_words=5).eval()
    features, label = torch.randn(4, 60, 40), torch.tensor([0, 1, 2, 3])
    extra = torch.tensor([4, -1, -1, 0])
    plan = Plan(NONE, NONE, 4, 60, label, extra, torch.ones(4, dtype=torch.bool))
    logits, words = network.both(features)
    expected = torch.nn.functional.cross_entropy(logits, label, label_smoothing=LABEL_SMOOTHING)
    said = torch.nn.functional.cross_entropy(words[[0, 3]], torch.tensor([4, 0]))
    head = TRAINED["classification"]
    torch.testing.assert_close(head.loss(network, features, plan), expected + WORD_WEIGHT * said)


class Clock(Timer):
    """A timer that shows what it is told."""

    def __init__(self, elapsed_s: float, whole_s: float) -> None:
        super().__init__(timedelta(seconds=whole_s))
        self.elapsed_s, self.whole_s = elapsed_s, whole_s

    def time_elapsed(self, *_: object) -> float:
        return self.elapsed_s

    def time_remaining(self, *_: object) -> float:
        return self.whole_s - self.elapsed_s


def rate(task: CommandTask, **trainer: object) -> float:
    task._trainer = SimpleNamespace(world_size=1, **trainer)  # type: ignore[assignment]
    return task._rate(30)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0, 1.2])
def test_the_rate_follows_the_clock_where_there_is_one(share: float) -> None:
    task = CommandTask(warmup=0.1)
    expected = warm_cosine(round(min(1.0, share) * 999), 1000, 0.1)
    assert rate(task, callbacks=[Clock(60 * share, 60)]) == pytest.approx(expected, abs=0.01)


def test_the_rate_follows_the_steps_without_a_clock() -> None:
    task = CommandTask(warmup=0.1)
    for callbacks in ([], [Timer()]):
        found = rate(task, callbacks=callbacks, estimated_stepping_batches=100)
        assert found == pytest.approx(warm_cosine(30, 100, 0.1))


def confusion(**cells: int) -> np.ndarray:
    """`yes_no=3`: three times yes was taken for no."""
    counts = np.zeros((N, N), np.int64)
    names = {label.strip("_"): number for number, label in enumerate(LABELS)}
    for cell, count in cells.items():
        true, heard = cell.split("_")
        counts[names[true], names[heard]] = count
    return counts


def test_figures_of_validation() -> None:
    nothing = np.zeros((N, N), np.int64)
    found = figures(
        {
            "official": confusion(yes_yes=9, yes_no=1, on_on=4, bed_bed=5, bed_yes=5, unknown_bed=10),
            "home": confusion(on_on=6, off_on=2, unknown_unknown=1, unknown_silence=1, unknown_on=1, off_off=1),
            "speech": confusion(unknown_yes=1, unknown_bed=9),
            "events": confusion(silence_unknown=10),
            "noise": nothing,
        },
        LABELS,
        KEYWORDS,
    )
    shares = {name: (f.hits, f.total) for name, f in found.items() if isinstance(f, Share)}
    assert shares == {
        "keywords": (13, 14), "on": (4, 4), "off": (0, 0), "home": (9, 12), "unknown_as_command": (5, 20),
        "speech_as_command": (1, 10), "events_as_command": (0, 10), "noise_as_command": (0, 0),
    }  # fmt: skip
    assert found["score"] == pytest.approx(np.mean([13 / 14, 9 / 12, 1 - np.mean([0.25, 0.1, 0.0])]))


def test_the_score_leaves_out_what_is_not_there() -> None:
    nothing = np.zeros((N, N), np.int64)
    groups = dict.fromkeys(("home", "speech", "events", "noise"), nothing)
    found = figures({"official": confusion(yes_yes=3, yes_no=1), **groups}, LABELS, KEYWORDS)
    assert found["score"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu avx2", "32-true"), ("fpu avx512_bf16", "bf16-mixed"), ("amx_bf16", "bf16-mixed"), (None, "32-true")],
)
def test_half_precision_is_for_machines_that_compute_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, precision: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(f"processor: 0\nflags\t: {flags}\n")
    assert train.precision_for("cpu", cpuinfo) == precision
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.precision_for("auto", cpuinfo) == precision
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train.precision_for("auto", cpuinfo) == "bf16-mixed"
    assert train.precision_for("cpu", cpuinfo) == precision


def test_a_run_of_some_seconds_ends_with_the_rate_at_zero(root: Path, tmp_path: Path) -> None:
    arguments = ["--config", "recipes/configs/smoke.yaml", "--data.root", str(root), "--run", str(tmp_path)]
    length = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:08", "--export", "false"]
    assert train.main([*arguments, *length]) == 0
    (groups,) = (
        state["param_groups"]
        for state in torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    )
    assert groups[0]["lr"] < 0.2 * 0.005
    history = train.read_curves(tmp_path)
    assert history
    assert all(math.isfinite(row["train/loss"]) for row in history if "train/loss" in row)
