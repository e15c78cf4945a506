"""The Lightning task and data module of training."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recipes.data.augment import Augment
from recipes.data.compose import Composer
from recipes.data.elements import Plan, render
from recipes.data.recordings import (
    RARE,
    Recording,
    index_others,
    index_procedural,
    index_words,
    read_commands,
    vocabulary,
)
from recipes.data.store import open_store
from recipes.heads import TRAINED
from recipes.metrics import Share, write_json
from recipes.vocabulary import WORDS
from speech.errors import ConfigError, DataError
from speech.model.export import load_network
from speech.model.features import FEATURES, LOG_OFFSET, MFCC
from speech.model.networks import NETWORKS, LSTMKind, Network, NetworkConfig

PROCEDURAL = 800
"""Number of generated sounds for training."""
WEIGHT_DECAY = 0.01
"""Of AdamW, on matrices only."""
SHARES = 10_000
"""Steps of the learning-rate schedule when the length of training is set by time."""


def warm_cosine(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: a half cosine up from 4 % in `warmup * total` steps, then one down to zero.

    Source: Smith and Topin 2018, as in torch.optim.lr_scheduler.OneCycleLR.
    """
    peak, last = max(warmup * total - 1, 1e-9), total - 1
    if step <= peak:
        return 1 - 0.96 * (1 + math.cos(math.pi * step / peak)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - peak) / max(1.0, last - peak)))) / 2


class Plans(IterableDataset[Plan]):
    """The plans of one epoch."""

    def __init__(self, plans: Iterator[Plan], steps: int) -> None:
        self.plans, self.steps = plans, steps

    def __iter__(self) -> Iterator[Plan]:
        return islice(self.plans, self.steps)

    def __len__(self) -> int:
        return self.steps


class CommandData(L.LightningDataModule):
    """Speech Commands and the other recordings of the data folder.

    Args:
        root: folder that holds SpeechCommands/ and, optionally, voices/, synthetic/, synthetic_sentences/,
            negative_speech/, events/, home/, noise/, rooms/.
        cache: folder of the store of sounds; default ROOT/cache.
        download: fetch Speech Commands v0.02 (2.3 GB) into `root` first.
        batch_size: examples per process in one step.
        steps: steps of an epoch.
        held_out: share of the training speakers of `on` and `off` that are moved to validation.
        per_kind: validation pieces each of speech, events and noise; for the CTC head, validation sequences.
        rare: recordings that a word needs to become a class; commands always are.
        words: list of the commands.
        seed: determines the examples of each epoch.
        strength: of the augmentation, 0..1.
        head: the head to train; taken from the model.
    """

    def __init__(
        self,
        root: Path,
        cache: Path | None = None,
        download: bool = False,
        batch_size: int = 128,
        steps: int = 200,
        held_out: float = 0.12,
        per_kind: int = 400,
        rare: int = RARE,
        words: Path = WORDS,
        seed: int = 1,
        strength: float = 1.0,
        head: str = "classification",
    ) -> None:
        super().__init__()
        if not (batch_size > 0 and steps > 0 and 0 <= strength <= 1):
            raise ConfigError(f"batch_size={batch_size}, steps={steps} must be positive, strength={strength} in 0..1")
        self.root, self.cache, self.download = root, cache or root / "cache", download
        self.batch_size, self.steps, self.held_out, self.per_kind = batch_size, steps, held_out, per_kind
        self.rare, self.words, self.seed, self.strength = rare, words, seed, strength
        self.head = TRAINED[head]

    def prepare_data(self) -> None:
        if self.download:
            from torchaudio.datasets import SPEECHCOMMANDS

            self.root.mkdir(parents=True, exist_ok=True)
            SPEECHCOMMANDS(str(self.root), download=True)
        open_store(self._index(), self.cache)

    def setup(self, stage: str) -> None:
        recordings = self._index()
        self.commands = read_commands(self.words)
        self.store = open_store(recordings, self.cache)
        self.labels = self.head.labels(vocabulary(recordings, self.commands, self.rare))
        self.composer = Composer(self.store, "training", self.labels, self.commands, self.strength)
        held_back = Composer(self.store, "validation", self.labels, self.commands, 0.0)
        if not len(held_back.pools["words"]):
            raise DataError(f"no validation recordings under {self.root}: validation_list.txt is empty")
        self.held_back = self.head.fixed(held_back, self.per_kind, self.batch_size)

    def _index(self) -> list[Recording]:
        return index_words(self.root, self.held_out) + index_others(self.root) + index_procedural(PROCEDURAL)

    @property
    def share(self) -> tuple[int, int]:
        """Index of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        rng = np.random.default_rng([self.seed, epoch, self.share[0]])
        plans = self.head.plans(self.composer, self.batch_size, rng)
        return DataLoader(Plans(plans, self.steps), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = self.share
        return DataLoader(self.held_back[rank::world], batch_size=None)  # type: ignore[arg-type]  # a list works too


class CommandTask(L.LightningModule):
    """Classification of utterances, or transcription of sequences with a CTC head.

    Args:
        head: name of the head.
        network: sizes of the network.
        learning_rate: peak of the schedule (a warm-up, then a cosine to zero).
        warmup: share of the steps, or of the time if the trainer has a `max_time`, in which the rate rises.
        seed: of the augmentation.
        start: checkpoint or bundle with the initial weights, to continue training; if its head differs, only the
            encoder's weights are used.
        lstm: `torch`, torch's own; `equations`, written out, which loads the same checkpoints; `rnn`, a plain RNN.
    """

    acoustic: Network
    """Features in, logits out."""
    counters: Any
    """The head's validation counters."""

    def __init__(
        self,
        head: str = "classification",
        network: NetworkConfig = NetworkConfig(),  # noqa: B008 - frozen
        learning_rate: float = 2e-3,
        warmup: float = 0.05,
        seed: int = 1,
        start: Path | None = None,
        lstm: LSTMKind = "torch",
    ) -> None:
        super().__init__()
        self.head, self.network, self.learning_rate, self.warmup = TRAINED[head], network, learning_rate, warmup
        self.seed, self.start, self.lstm = seed, start, lstm
        self.labels: tuple[str, ...] = ()

    @property
    def data(self) -> CommandData:
        data: CommandData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def configure_model(self) -> None:
        if self.labels:
            return
        self.labels = self.data.labels
        self.mfcc = MFCC()
        n_words = len(self.data.composer.words)
        self.acoustic = NETWORKS[self.head.name](len(self.labels), self.network, self.lstm, n_words)
        if self.start:
            self._begin_with(self.acoustic, self.start)
        self.counters = self.head.counters(len(self.labels))

    def _begin_with(self, network: Network, start: Path) -> None:
        """Load the initial weights from a checkpoint or bundle."""
        scorer, notes = load_network(start)
        if notes["head"] != self.head.name:
            network.encoder.load_state_dict(scorer.network.encoder.state_dict())
        elif tuple(notes["labels"]) != self.labels:
            raise ConfigError(f"{start} has other labels than the data: {', '.join(notes['labels'])}")
        else:
            network.load_state_dict(scorer.network.state_dict(), strict=False)  # without the training-only layer

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, time) -> logits (batch, classes) or (batch, steps, tokens)"""
        return self.acoustic(self.mfcc(waveform))

    def on_fit_start(self) -> None:
        self.frames = self.data.store.frames.to(self.device)  # on the CPU it stays memory-mapped

    def on_train_epoch_start(self) -> None:
        seed = (self.seed * 1000 + self.current_epoch) * 1000 + self.global_rank
        self.augment = Augment(self.data.strength, torch.Generator(self.device).manual_seed(seed))

    def training_step(self, plan: Plan, _: int) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            power, noise = (render(self.frames, e, plan.n_rows, plan.n_frames) for e in (plan.elements, plan.noises))
            features = self.augment(power, noise, plan.sounding) @ self.mfcc.dct.T
        loss = self.head.loss(self.acoustic, features, plan)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=plan.n_rows)
        return loss

    def validation_step(self, batch: tuple[Plan, Tensor], _: int) -> None:
        plan, group = batch
        with torch.autocast(self.device.type, enabled=False):
            power = render(self.frames, plan.elements, plan.n_rows, plan.n_frames)
            features = torch.log(power + LOG_OFFSET) @ self.mfcc.dct.T
        self.head.count(self.counters, self.acoustic(features).float(), plan, group, self.labels)

    def on_validation_epoch_end(self) -> None:
        found = self.head.figures(self.counters, self.labels, self.data.commands)
        for name, figure in found.items():
            value = figure.value if isinstance(figure, Share) else figure
            if not math.isnan(value):
                self.log(f"val/{name}", value, prog_bar=name in ("balanced", "score", "commands"))
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            kept = {name: f.as_dict() if isinstance(f, Share) else f for name, f in found.items()}
            record = {"epoch": self.current_epoch, "figures": kept}
            write_json(Path(self.trainer.default_root_dir) / "validation.json", record)

    def configure_optimizers(self) -> Any:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the peak learning rate.

        With a `max_time` it follows the clock, else the trainer's number of steps, so a resumed run may be prolonged.
        """
        clock = next((c for c in self.trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
        if clock is None or clock.time_remaining() is None:
            return warm_cosine(step, int(self.trainer.estimated_stepping_batches), self.warmup)
        elapsed_s, left_s = clock.time_elapsed(), max(0.0, clock.time_remaining() or 0.0)
        share = elapsed_s / (elapsed_s + left_s)
        if self.trainer.world_size > 1:  # all processes need the same rate
            share = self.trainer.strategy.broadcast(share)
        return warm_cosine(round(share * (SHARES - 1)), SHARES, self.warmup)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["speech"] = {
            "labels": list(self.labels),
            "features": FEATURES,
            "network": asdict(self.network),
            "lstm": self.lstm,
            "head": self.head.name,
            "epoch": self.current_epoch + 1,
            "examples": self.global_step * self.data.batch_size * self.data.share[1],
        }
