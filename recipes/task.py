"""The Lightning task and data module: what is trained, on what."""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchaudio.functional import edit_distance
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from recipes.metrics import summarize
from speech.bundle import BLANK, UNKNOWN
from speech.ctc import greedy
from speech.errors import ConfigError, DataError
from speech.training.augment import Augment, AugmentConfig, impulse_responses
from speech.training.data import (
    SILENCE,
    Corpus,
    FixedExamples,
    MixConfig,
    TrainingExamples,
    index_others,
    index_words,
    vocabulary,
)
from speech.training.export import PREFIX, load_network
from speech.training.features import MFCC, FeatureConfig
from speech.training.mixtures import MixtureBatches, MixtureConfig, encode, fixed_mixtures
from speech.training.networks import Head, LSTMKind, Network, NetworkConfig, build_network


def warm_cosine(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: half a cosine up from 4 % in `warmup * total` steps, half a one down to zero.

    Source: Smith and Topin 2018, as in torch.optim.lr_scheduler.OneCycleLR.
    """
    peak, last = warmup * total - 1, total - 1
    if step <= peak:
        return 1 - 0.96 * (1 + math.cos(math.pi * step / peak)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - peak) / max(1.0, last - peak)))) / 2


class CommandData(L.LightningDataModule):
    """Speech Commands with what else lies beside it.

    Args:
        root: folder that holds SpeechCommands/ and, if there, negative_speech/, noise/, rooms/, synthetic/.
        cache: where the decoded audio is kept; default ROOT/cache.
        download: fetch Speech Commands v0.02 (2.3 GB) into `root` first.
        batch_size: examples in one step.
        workers: processes that prepare examples.
        held_out: share of the training speakers of `on` and `off` who join validation.
        per_kind: windows of speech and of noise in validation; for the CTC head, mixtures.
        seed: fixes what each epoch holds.
        mix: what an epoch is made of for the classification head.
        mixtures: the same for the CTC head.
        head: what the examples are for; taken from the model.
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
        seed: int = 1,
        mix: MixConfig = MixConfig(),  # noqa: B008 - frozen
        mixtures: MixtureConfig = MixtureConfig(),  # noqa: B008
        head: Head = "classification",
    ) -> None:
        super().__init__()
        self.root, self.cache, self.download = root, cache or root / "cache", download
        self.batch_size, self.workers, self.held_out, self.per_kind = batch_size, workers, held_out, per_kind
        self.seed, self.mix, self.mixtures, self.head = seed, mix, mixtures, head

    def prepare_data(self) -> None:
        if self.download:
            from torchaudio.datasets import SPEECHCOMMANDS

            self.root.mkdir(parents=True, exist_ok=True)
            SPEECHCOMMANDS(str(self.root), download=True)
        Corpus(self._index(), self.cache)

    def setup(self, stage: str) -> None:
        recordings = self._index()
        self.labels = vocabulary(recordings, self.mix.rare)
        self.corpus = Corpus(recordings, self.cache)
        self.rare = torch.tensor(
            [0 < len(self.corpus.select("training", "words", label)) < self.mix.rare for label in self.labels]
        )
        rooms = [torch.from_numpy(self.corpus[i]) for i in self.corpus.select("training", "rooms")]
        self.rooms = impulse_responses(rooms)
        if self.head == "ctc":
            self.labels = (*(label for label in self.labels if label != SILENCE), BLANK)
            self.sequences = fixed_mixtures(self.corpus, "validation", self.per_kind, seed=0)
            return
        self.validation = FixedExamples(self.corpus, self.labels, "validation", self.per_kind, seed=0)
        if not len(self.validation):
            raise DataError(f"no validation recordings under {self.root}: validation_list.txt is empty")

    def _index(self) -> list[Any]:
        return index_words(self.root, self.held_out) + index_others(self.root)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        if self.head == "ctc":
            batches = MixtureBatches(self.corpus, self.labels, self.mixtures, self.seed, epoch)
            return DataLoader(batches, batch_size=None, num_workers=self.workers)
        examples = TrainingExamples(self.corpus, self.labels, self.mix, self.seed, epoch)
        return DataLoader(
            examples, self.batch_size, shuffle=True, num_workers=self.workers, drop_last=len(examples) > self.batch_size
        )

    def val_dataloader(self) -> DataLoader[Any]:
        if self.head == "ctc":
            items = [(torch.from_numpy(m.waveform)[None], *encode([m.transcript], self.labels)) for m in self.sequences]
            return DataLoader(items, batch_size=None)  # type: ignore[arg-type]  # a list will do
        return DataLoader(self.validation, 2 * self.batch_size)


class CommandTask(L.LightningModule):
    """Classification of one second of audio, or transcription of sequences with a CTC head.

    Args:
        head: what the scores mean.
        features: the MFCC.
        network: the encoder's size.
        augment: variation of the training examples.
        learning_rate: peak of the schedule (a warm-up, then a cosine to zero).
        warmup: share of all steps in which the rate rises.
        weight_decay: of AdamW.
        label_smoothing: probability spread over the other classes.
        seed: of the augmentation.
        start: checkpoint or bundle whose weights training begins with, to teach a trained network on; from one with
            the other head, the encoder's.
        lstm: torch's own; or the one written from its equations, which takes the same checkpoints; or a plain RNN.
    """

    def __init__(
        self,
        head: Head = "classification",
        features: FeatureConfig = FeatureConfig(),  # noqa: B008 - frozen
        network: NetworkConfig = NetworkConfig(),  # noqa: B008
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008
        learning_rate: float = 2e-3,
        warmup: float = 0.08,
        weight_decay: float = 0.02,
        label_smoothing: float = 0.1,
        seed: int = 1,
        start: Path | None = None,
        lstm: LSTMKind = "torch",
    ) -> None:
        super().__init__()
        self.features, self.network, self.augment = features, network, augment
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        self.label_smoothing, self.seed, self.lstm = label_smoothing, seed, lstm
        self.start, self.head = start, head
        self.labels: tuple[str, ...] = ()

    def configure_model(self) -> None:
        if self.labels:
            return
        data: CommandData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.labels = data.labels
        self.mfcc = MFCC(self.features)
        network = build_network(self.head, self.features.n_mfcc, len(self.labels), self.network, self.lstm)
        setattr(self, PREFIX[self.head].rstrip("."), network)
        if self.start:
            self._begin_with(network, self.start)
        if self.head == "classification":
            self.confusion = MulticlassConfusionMatrix(len(self.labels))
        else:
            self.errors = MeanMetric()

    def _begin_with(self, network: Network, start: Path) -> None:
        """Take over the weights of a checkpoint or bundle."""
        scorer, notes = load_network(start)
        if notes.get("head", "classification") != self.head:
            network.encoder.load_state_dict(scorer.network.encoder.state_dict())
        elif tuple(notes["labels"]) != self.labels:
            raise ConfigError(f"{start} knows other words than the data: {', '.join(notes['labels'])}")
        else:
            network.load_state_dict(scorer.network.state_dict())

    @property
    def acoustic(self) -> Network:
        """The network of the head: features in, logits out."""
        network: Network = getattr(self, PREFIX[self.head].rstrip("."))
        return network

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, time) -> logits (batch, classes) or (batch, steps, tokens)"""
        with torch.autocast(waveform.device.type, enabled=False):
            features = self.mfcc(waveform)
        return self.acoustic(features)

    def on_train_epoch_start(self) -> None:
        data: CommandData = self.trainer.datamodule  # type: ignore[attr-defined]
        seed = (self.seed * 1000 + self.current_epoch) * 1000 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(seed)
        self.vary = Augment(self.augment, data.rooms.to(self.device), generator)
        self.rare = data.rare.to(self.device)

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        loss = self._classify(*batch) if self.head == "classification" else self._transcribe(*batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch[0]))
        return loss

    def _classify(self, waveform: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        spoken = label != self.labels.index(SILENCE)
        logits = self._logits(waveform, noise, spoken, self.rare[label])
        return nn.functional.cross_entropy(logits, label, label_smoothing=self.label_smoothing)

    def _transcribe(self, waveform: Tensor, noise: Tensor, targets: Tensor, n_targets: Tensor) -> Tensor:
        """CTC loss of each mixture, summed over its tokens, divided by the batch."""
        spoken = torch.ones_like(n_targets, dtype=torch.bool)
        posteriors = self._logits(waveform, noise, spoken, ~spoken).log_softmax(2)
        n_steps = torch.full_like(n_targets, posteriors.shape[1])
        blank = self.labels.index(BLANK)
        loss = nn.functional.ctc_loss(
            posteriors.transpose(0, 1), targets, n_steps, n_targets, blank, reduction="none", zero_infinity=True
        )
        return loss.mean()

    def _logits(self, waveform: Tensor, noise: Tensor, spoken: Tensor, rare: Tensor) -> Tensor:
        """Of the batch, varied."""
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            waveform = self.vary.waveform(waveform, noise, spoken, rare)
            features = self.vary.features(self.mfcc(waveform))
        logits: Tensor = self.acoustic(features).float()
        return logits

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        if self.head == "ctc":
            waveform, targets, n_targets = batch
            posteriors = self(waveform).float().log_softmax(2)[0].cpu().numpy()
            heard = [span.label for span in greedy(posteriors, self.labels) if span.label != UNKNOWN]
            said = [self.labels[n] for n in targets[0, : n_targets[0]]]
            self.errors.update(edit_distance(said, heard) / len(said), weight=len(said))
            return
        waveform, label = batch
        logits = self(waveform).float()
        self.confusion.update(logits, label)
        self.log("val/loss", nn.functional.cross_entropy(logits, label), sync_dist=True, batch_size=len(label))

    def on_validation_epoch_end(self) -> None:
        if self.head == "ctc":
            self.log("val/commands", 1 - self.errors.compute(), prog_bar=True, sync_dist=True)
            self.errors.reset()
            return
        summary = summarize(self.confusion.compute().cpu().numpy(), self.labels)
        self.confusion.reset()
        figures = {
            "val/balanced": summary.balanced,
            "val/accuracy": summary.accuracy.value,
            "val/keywords": summary.keywords.value,
            "val/on": summary.recall["on"].value,
            "val/off": summary.recall["off"].value,
            "val/unknown_as_command": summary.unknown_as_command.value,
            "val/silence_as_command": summary.silence_as_command.value,
        }
        for name, value in figures.items():
            self.log(name, value, prog_bar=name in ("val/balanced", "val/accuracy"), sync_dist=True)

    def configure_optimizers(self) -> Any:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        # A function of the trainer's own length, so that a resumed run may be longer than it was meant to be.
        rate = partial(warm_cosine, total=int(self.trainer.estimated_stepping_batches), warmup=self.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["speech"] = {
            "labels": list(self.labels),
            "features": asdict(self.features),
            "network": asdict(self.network),
            "lstm": self.lstm,
            "head": self.head,
            "epoch": self.current_epoch + 1,
        }
