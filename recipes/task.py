"""The Lightning task and data module of training."""

import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.utils.data import DataLoader

from recipes.data.augment import Augment, AugmentConfig, impulse_responses
from recipes.data.corpus import (
    Corpus,
    Recording,
    index_others,
    index_procedural,
    index_words,
    read_commands,
    vocabulary,
)
from recipes.data.examples import MixConfig, Utterances
from recipes.data.material import Material, NoiseMix
from recipes.data.mixtures import MixtureConfig, Mixtures
from recipes.data.plan import as_bank, render
from recipes.data.teacher import Teacher, read_teacher
from recipes.heads import TRAINED
from recipes.metrics import Share, write_json
from recipes.vocabulary import WORDS
from speech.errors import ConfigError
from speech.model.export import load_network
from speech.model.features import MFCC, FeatureConfig
from speech.model.networks import NETWORKS, LSTMKind, Network, NetworkConfig

SHARES = 10_000
"""Steps of the learning-rate schedule when the length of training is set by time."""


def warm_cosine(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: a half cosine up from 4 % in `warmup * total` steps, then one down to zero.

    Source: Smith and Topin 2018, as in torch.optim.lr_scheduler.OneCycleLR.
    """
    peak, last = warmup * total - 1, total - 1
    if step <= peak:
        return 1 - 0.96 * (1 + math.cos(math.pi * step / peak)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - peak) / max(1.0, last - peak)))) / 2


class CommandData(L.LightningDataModule):
    """Speech Commands and the other recordings of the data folder.

    Args:
        root: folder that holds SpeechCommands/ and, optionally, voices/, synthetic/, synthetic_sentences/,
            negative_speech/, events/, home/, noise/, rooms/.
        cache: folder of the decoded audio; default ROOT/cache.
        download: fetch Speech Commands v0.02 (2.3 GB) into `root` first.
        batch_size: examples per process in one step.
        workers: processes that draw the plans, which is cheap.
        held_out: share of the training speakers of `on` and `off` that are moved to validation.
        per_kind: validation pieces each of speech, events and noise; for the CTC head, validation mixtures.
        procedural: number of generated sounds for training.
        teacher: archive with posteriors of teacher networks; default none.
        words: list of the commands; other words with enough recordings also become classes.
        seed: determines the examples of each epoch.
        mix: composition of an epoch for the classification head.
        mixtures: composition of an epoch for the CTC head.
        noise: composition of the noise for both.
        head: the head to train; taken from the model.
    """

    def __init__(
        self,
        root: Path,
        cache: Path | None = None,
        download: bool = False,
        batch_size: int = 256,
        workers: int = 0,
        held_out: float = 0.12,
        per_kind: int = 400,
        procedural: int = 800,
        teacher: Path | None = None,
        words: Path = WORDS,
        seed: int = 1,
        mix: MixConfig = MixConfig(),  # noqa: B008 - frozen
        mixtures: MixtureConfig = MixtureConfig(),  # noqa: B008
        noise: NoiseMix = NoiseMix(),  # noqa: B008
        head: str = "classification",
    ) -> None:
        super().__init__()
        self.root, self.cache, self.download = root, cache or root / "cache", download
        self.batch_size, self.workers, self.held_out, self.per_kind = batch_size, workers, held_out, per_kind
        self.procedural, self.teacher_path, self.words, self.seed = procedural, teacher, words, seed
        self.mix, self.mixtures, self.noise, self.head = mix, mixtures, noise, head

    def prepare_data(self) -> None:
        if self.download:
            from torchaudio.datasets import SPEECHCOMMANDS

            self.root.mkdir(parents=True, exist_ok=True)
            SPEECHCOMMANDS(str(self.root), download=True)
        Corpus(self._index(), self.cache)

    def setup(self, stage: str) -> None:
        recordings = self._index()
        self.commands = read_commands(self.words)
        self.corpus = Corpus(recordings, self.cache)
        rooms = [torch.from_numpy(self.corpus[i]) for i in self.corpus.select("training", "rooms")]
        self.rooms = impulse_responses(rooms)
        head = TRAINED[self.head]
        self.labels = head.labels(vocabulary(recordings, self.mix.rare, self.commands))
        self.material = Material(self.corpus, "training", head.mix(self), self.commands)
        self.held_back = head.validation(self)

    @cached_property
    def teacher(self) -> Teacher:
        """The teachers' posteriors for the recordings; empty without `teacher_path`."""
        if not self.teacher_path:
            return Teacher(len(self.labels))
        return read_teacher(self.teacher_path, self.corpus.recordings, self.labels)

    def _index(self) -> list[Recording]:
        return index_words(self.root, self.held_out) + index_others(self.root) + index_procedural(self.procedural)

    @property
    def share(self) -> tuple[int, int]:
        """Index of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        return DataLoader(TRAINED[self.head].batches(self, epoch), batch_size=None, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = self.share
        items = [self.held_back[i] for i in range(rank, len(self.held_back), world)]
        return DataLoader(items, batch_size=None)  # type: ignore[arg-type]  # a list works too


class CommandTask(L.LightningModule):
    """Classification of utterances, or transcription of sequences with a CTC head.

    Args:
        head: name of the head.
        features: settings of the MFCC.
        network: sizes of the network.
        augment: augmentation of the training examples.
        learning_rate: peak of the schedule (a warm-up, then a cosine to zero).
        warmup: share of the steps, or of the time if the trainer has a `max_time`, in which the rate rises.
        weight_decay: of AdamW.
        label_smoothing: probability spread over the other classes.
        soft_share: share of the teachers' posteriors in the targets, if there are any.
        aux_weight: weight of a second loss that separates all words, including those outside the vocabulary; 0: none.
        seed: of the augmentation.
        start: checkpoint or bundle with the initial weights, to continue training; if its head differs, only the
            encoder's weights are used.
        lstm: `torch`, torch's own; `equations`, written out, which loads the same checkpoints; `rnn`, a plain RNN.
    """

    acoustic: Network
    """Features in, logits out."""
    metrics: Any
    """The head's validation counters."""

    def __init__(
        self,
        head: str = "classification",
        features: FeatureConfig = FeatureConfig(),  # noqa: B008 - frozen
        network: NetworkConfig = NetworkConfig(),  # noqa: B008
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008
        learning_rate: float = 2e-3,
        warmup: float = 0.08,
        weight_decay: float = 0.02,
        label_smoothing: float = 0.1,
        soft_share: float = 0.6,
        aux_weight: float = 0.3,
        seed: int = 1,
        start: Path | None = None,
        lstm: LSTMKind = "torch",
    ) -> None:
        super().__init__()
        self.features, self.network, self.augment = features, network, augment
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        self.label_smoothing, self.soft_share, self.aux_weight = label_smoothing, soft_share, aux_weight
        self.seed, self.lstm, self.start, self.head = seed, lstm, start, head
        self.labels: tuple[str, ...] = ()
        self._bank: Tensor | None = None

    @property
    def data(self) -> CommandData:
        data: CommandData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def bank(self) -> Tensor:
        """All recordings, on the device of the network."""
        if self._bank is None or self._bank.device != self.device:
            self._bank = as_bank(self.data.corpus, self.device)
        return self._bank

    def configure_model(self) -> None:
        if self.labels:
            return
        self.labels = self.data.labels
        self.mfcc = MFCC(self.features)
        n_words = len(self.data.material.words) if self.aux_weight else 0
        network = NETWORKS[self.head]
        self.acoustic = network(self.features.n_mfcc, len(self.labels), self.network, self.lstm, n_words)
        if self.start:
            self._begin_with(self.acoustic, self.start)
        self.metrics = TRAINED[self.head].metrics(len(self.labels))

    def _begin_with(self, network: Network, start: Path) -> None:
        """Load the initial weights from a checkpoint or bundle."""
        scorer, notes = load_network(start)
        if notes["head"] != self.head:
            network.encoder.load_state_dict(scorer.network.encoder.state_dict())
        elif tuple(notes["labels"]) != self.labels:
            raise ConfigError(f"{start} has other labels than the data: {', '.join(notes['labels'])}")
        else:
            network.load_state_dict(scorer.network.state_dict(), strict=False)  # without the training-only layer

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, time) -> logits (batch, classes) or (batch, steps, tokens)"""
        with torch.autocast(waveform.device.type, enabled=False):
            features = self.mfcc(waveform)
        return self.acoustic(features)

    def on_train_epoch_start(self) -> None:
        seed = (self.seed * 1000 + self.current_epoch) * 1000 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(seed)
        self.vary = Augment(self.augment, self.data.rooms.to(self.device), generator)

    def training_step(self, batch: Utterances | Mixtures, _: int) -> Tensor:
        loss = TRAINED[self.head].loss(self, batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch.plan.n_rows)
        return loss

    @torch.no_grad()
    def features_of(self, batch: Utterances | Mixtures, sounding: Tensor) -> Tensor:
        """Render and augment a training batch: features (batch, frames, n_mfcc)."""
        with torch.autocast(self.device.type, enabled=False):
            waveform, noise = render(batch.plan, self.bank)
            return self.vary.features(self.mfcc(self.vary.waveform(waveform, noise, sounding)))

    def validation_step(self, batch: Any, _: int) -> None:
        TRAINED[self.head].validate(self, batch)

    def on_validation_epoch_end(self) -> None:
        found = TRAINED[self.head].figures(self)
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
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
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
            "features": asdict(self.features),
            "network": asdict(self.network),
            "lstm": self.lstm,
            "head": self.head,
            "epoch": self.current_epoch + 1,
        }
