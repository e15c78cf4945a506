"""Train and export: `python -m recipes.train --config recipes/configs/commands.yaml --data.root DIR`.

The run folder receives checkpoints, metrics.csv, curves.png, the exported bundle and results.json.
"""

import csv
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from recipes.data.recordings import read_recording
from recipes.heads import TRAINED, TrainedClassification
from recipes.metrics import write_json
from recipes.task import CommandData, CommandTask
from speech.bundle import UNKNOWN
from speech.errors import SpeechError, exit_status
from speech.model.export import Scorer, best_temperature, bundle_info, export, load_checkpoint, parity
from speech.segment import SAMPLE_RATE_HZ, high_pass

BASE = Path(__file__).parent / "configs" / "base.yaml"
"""Settings that every config starts from."""


class TrainCLI(LightningCLI):
    """The command line: trainer, model, data and the options of a run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=Path, default=Path("runs/commands"), help="folder of this run")
        parser.add_argument("--resume", type=bool, default=False, help="continue from the run's last checkpoint")
        parser.add_argument("--name", type=str, default="commands", help="file name of the exported bundle")
        parser.add_argument("--average", type=float, default=0.998, help="decay per step of the averaged weights")
        parser.add_argument("--select", type=Literal["best", "last"], default="best", help="epoch to export")
        parser.add_argument("--threshold", type=float, default=0.7, help="default threshold of the bundle, 0..1")
        parser.add_argument(
            "--thresholds", type=dict[str, float], default={}, help="thresholds of single words (speech.calibrate)"
        )
        parser.add_argument(
            "--offsets", type=dict[str, float], default={}, help="added to the logits of these labels in the bundle"
        )
        parser.add_argument("--export", type=bool, default=True, help="write the bundle at the end")
        parser.add_argument("--patience", type=int, default=0, help="stop after N epochs without improvement; 0: never")

        parser.link_arguments("model.head", "data.head")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config, run = self.config, self.config.run
        monitor = TRAINED[config.model.head].monitor
        callbacks: list[L.Callback] = [
            ModelCheckpoint(run / "checkpoints", "best", monitor, mode="max", enable_version_counter=False),
            # Saved every epoch, for --resume.
            ModelCheckpoint(run / "checkpoints", "last", enable_version_counter=False, save_on_train_epoch_end=True),
            LearningRateMonitor("epoch"),
            WeightAveraging(use_buffers=True, avg_fn=moving_average(config.average)),
        ]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(TQDMProgressBar(refresh_rate=10))
        if config.patience:
            callbacks.append(EarlyStopping(monitor, mode="max", patience=config.patience))
        if config.trainer.precision is None:
            kwargs["precision"] = precision_for(config.trainer.accelerator)
        kwargs |= {
            "callbacks": callbacks,
            "logger": CSVLogger(run, name="", version=f"curves-{len(list(run.glob('curves-*'))) + 1}"),
            "default_root_dir": run,
            "reload_dataloaders_every_n_epochs": 1,
            "use_distributed_sampler": False,  # each process already makes its own batches
        }
        return super().instantiate_trainer(**kwargs)


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Exponential moving average of the weights; at first it forgets the random weights faster than `decay` would."""

    def averaged(average: Tensor, new: Tensor, step: Tensor) -> Tensor:
        if not new.is_floating_point():
            return new  # a counter
        return average.lerp(new, 1 - min(decay, float(1 + step) / float(10 + step)))

    return averaged


def precision_for(accelerator: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> Literal["bf16-mixed", "32-true"]:
    """Choose bf16 if the hardware supports it: on a GPU, or on a processor with bf16 instructions.

    Other processors are three times slower with bf16 than without.

    Args:
        accelerator: the trainer's setting.
        cpuinfo: file in which Linux lists the processor's features.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed"
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def train(cli: TrainCLI) -> None:
    """Fit, then export the selected checkpoint."""
    run: Path = cli.config.run
    last = run / "checkpoints" / "last.ckpt"
    if cli.config.resume and not last.is_file():
        raise SpeechError(f"nothing to resume: {last} is missing")
    if not cli.config.resume and last.is_file():
        raise SpeechError(f"{run} already holds a run: add --resume true, or give another --run")
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=last if cli.config.resume else None)
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        raise SpeechError(f"{last} holds another network: give the run's model settings, or another --run") from error
    if cli.config.export and cli.trainer.is_global_zero and not cli.trainer.interrupted:
        finish(cli, run)


def finish(cli: TrainCLI, run: Path) -> None:
    """Write the curves, the bundle and its results."""
    history = read_curves(run)
    draw_curves(history, run / "curves.png")
    scorer, notes = load_checkpoint(run / "checkpoints" / f"{cli.config.select}.ckpt")
    data: CommandData = cli.datamodule
    training = {
        "epochs": notes["epoch"],
        "examples": notes["examples"],
        "parameters": sum(p.numel() for p in scorer.network.parameters()),
        "strength": data.strength,
        "recordings": Counter(r.source for r in data.store.recordings if r.part == "training"),
        "offsets": dict(cli.config.offsets),
        "torch": str(torch.__version__),
    }
    scorer.shift(training["offsets"], notes["labels"])
    row = next((row for row in history if row["epoch"] + 1 == notes["epoch"]), {})
    figures = {k: round(v, 5) for k, v in row.items() if k.startswith("val/")}
    words = [r for r in data.store.recordings if r.part == "validation" and r.source == "words"]
    clips = [torch.from_numpy(high_pass(read_recording(r))) for r in words]
    if notes["head"] == TrainedClassification.name:
        labels = [r.word if r.word in notes["labels"] else UNKNOWN for r in words]
        scorer.temperature = round(best_temperature(logits_of(scorer, clips), labels, notes["labels"]), 3)
    training["temperature"] = scorer.temperature
    bundle = run / f"{cli.config.name}.onnx"
    info = bundle_info(notes, cli.config.threshold, training, figures, cli.config.thresholds)
    difference = max(export(scorer, info, bundle), parity(scorer, bundle, SAMPLE_RATE_HZ, clips[::100]))
    print(f"{bundle}: {bundle.stat().st_size / 1e6:.1f} MB, differs from torch by at most {difference:.1g}")
    write_json(run / "results.json", {"training": training, "parity": difference, "validation": figures})


@torch.no_grad()
def logits_of(scorer: Scorer, clips: list[Tensor]) -> Tensor:
    """Logits of clips (each (time,)) as the bundle reads them: (clips, classes)."""
    length = SAMPLE_RATE_HZ
    whole = torch.stack([nn.functional.pad(clip[:length], (0, max(0, length - len(clip)))) for clip in clips])
    return torch.cat([scorer.logits(batch) for batch in whole.split(64)])


def read_curves(run: Path) -> list[dict[str, float]]:
    """Read one row per epoch from all CSV files of a run; values of a resumed run override earlier ones."""
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(run.glob("curves*/metrics.csv"), key=lambda p: p.stat().st_mtime):
        with open(path, newline="") as file:
            for line in csv.DictReader(file):
                values = {k: float(v) for k, v in line.items() if v}
                if "epoch" in values:
                    rows.setdefault(int(values["epoch"]), {}).update(values)
    return [rows[epoch] for epoch in sorted(rows)]


def draw_curves(history: list[dict[str, float]], target: Path) -> None:
    """Draw loss and validation figures against the epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, share = figure.subplots(1, 2)
    drawn = {*(head.monitor for head in TRAINED.values()), "val/keywords", "val/on", "val/off", "val/home"}
    shares = sorted({name for row in history for name in row} & drawn)
    for axes, names in ((loss, ("train/loss",)), (share, shares)):
        for name in names:
            points = [(row["epoch"] + 1, row[name]) for row in history if name in row]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_xlabel("epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    loss.set(title="Loss", ylabel="nats")
    share.set(title="Validation", ylabel="share right")
    figure.savefig(target, dpi=120)


def main(argv: list[str] | None = None) -> int:
    torch.set_float32_matmul_precision("high")

    def run() -> None:
        train(
            TrainCLI(
                CommandTask, CommandData, run=False, args=argv, seed_everything_default=1,
                save_config_kwargs={"overwrite": True}, parser_kwargs={"default_config_files": [str(BASE)]},
            )
        )  # fmt: skip

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
