"""The Lightning task and data module: what is trained, on what."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchaudio.functional import edit_distance
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from recipes.metrics import Share, fold, summarize, write_json
from speech.bundle import BLANK, SILENCE, UNKNOWN
from speech.ctc import greedy
from speech.errors import ConfigError, DataError
from speech.training.augment import Augment, AugmentConfig, as_heard_live, impulse_responses
from speech.training.corpus import (
    KEYWORDS,
    Corpus,
    Recording,
    index_others,
    index_procedural,
    index_words,
    read_commands,
    vocabulary,
)
from speech.training.examples import GROUPS, MixConfig, UtteranceBatches, Utterances, ValidationUtterances
from speech.training.export import PREFIX, load_network
from speech.training.features import MFCC, FeatureConfig
from speech.training.material import Material, NoiseMix
from speech.training.mixtures import MixtureBatches, MixtureConfig, Mixtures, encode, fixed_mixtures
from speech.training.networks import Classifier, Head, LSTMKind, Network, NetworkConfig, build_network
from speech.training.plan import as_bank, render
from speech.training.teacher import Teacher, read_teacher

WORDS = Path(__file__).parent / "words.txt"
SHARES = 10_000
"""Steps of the schedule when it follows the clock."""


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
        root: folder that holds SpeechCommands/ and, if there, voices/, synthetic/, synthetic_sentences/,
            negative_speech/, events/, home/, noise/, rooms/.
        cache: where the decoded audio is kept; default ROOT/cache.
        download: fetch Speech Commands v0.02 (2.3 GB) into `root` first.
        batch_size: examples of each process in one step.
        workers: processes that draw the plans; they are cheap.
        held_out: share of the training speakers of `on` and `off` who join validation.
        per_kind: pieces of speech, of events and of noise in validation; for the CTC head, mixtures.
        procedural: made sounds that training draws from.
        teacher: archive with the posteriors of networks that know the words; default none.
        words: list of the commands; other words with enough recordings get a class of their own too.
        seed: fixes what each epoch holds.
        mix: what an epoch is made of for the classification head.
        mixtures: the same for the CTC head.
        noise: what the noise below both is made of.
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
        procedural: int = 800,
        teacher: Path | None = None,
        words: Path = WORDS,
        seed: int = 1,
        mix: MixConfig = MixConfig(),  # noqa: B008 - frozen
        mixtures: MixtureConfig = MixtureConfig(),  # noqa: B008
        noise: NoiseMix = NoiseMix(),  # noqa: B008
        head: Head = "classification",
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
        commands = read_commands(self.words)
        self.labels = vocabulary(recordings, self.mix.rare, commands)
        self.corpus = Corpus(recordings, self.cache)
        rooms = [torch.from_numpy(self.corpus[i]) for i in self.corpus.select("training", "rooms")]
        self.rooms = impulse_responses(rooms)
        sources = self.mix if self.head == "classification" else self.mixtures
        self.material = Material(self.corpus, "training", sources, commands)
        self.n_words = len(self.material.words)
        if self.head == "ctc":
            self.labels = (*(label for label in self.labels if label != SILENCE), BLANK)
            self.sequences = fixed_mixtures(self.corpus, "validation", self.per_kind, seed=0)
            return
        path = self.teacher_path
        self.teacher = read_teacher(path, recordings, self.labels) if path else Teacher(len(self.labels))
        if not len(self.corpus.select("validation", "words")):
            raise DataError(f"no validation recordings under {self.root}: validation_list.txt is empty")
        # At least one batch for each process.
        size = max(1, min(2 * self.batch_size, len(self.corpus.select("validation", "words")) // self._share[1]))
        self.validation = ValidationUtterances(self.corpus, self.labels, "validation", self.per_kind, size)

    def _index(self) -> list[Recording]:
        return index_words(self.root, self.held_out) + index_others(self.root) + index_procedural(self.procedural)

    @property
    def _share(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        batches: MixtureBatches | UtteranceBatches
        if self.head == "ctc":
            batches = MixtureBatches(
                self.material, self.labels, self.mixtures, self.noise, self.seed, epoch, self._share
            )
        else:
            batches = UtteranceBatches(
                self.material, self.labels, self.mix, self.noise, self.teacher, self.batch_size, self.seed, epoch,
                self._share,
            )  # fmt: skip
        return DataLoader(batches, batch_size=None, num_workers=self.workers)

    def official(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The official words of validation as the live loop hears them: (batch, time) and labels (batch,)."""
        bank = as_bank(self.corpus, "cpu")
        for batch in (self.validation[i] for i in range(len(self.validation))):
            chosen = batch.group == GROUPS.index("official")
            if chosen.any():
                yield as_heard_live(render(batch.plan, bank)[0])[chosen], batch.label[chosen]

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = self._share
        items: Sequence[Any]
        if self.head == "ctc":
            items = [(torch.from_numpy(m.waveform)[None], *encode([m.transcript], self.labels)) for m in self.sequences]
        else:
            items = [self.validation[i] for i in range(len(self.validation))]
        return DataLoader(items[rank::world], batch_size=None)  # type: ignore[arg-type]  # a list will do


class CommandTask(L.LightningModule):
    """Classification of one utterance, or transcription of sequences with a CTC head.

    Args:
        head: what the scores mean.
        features: the MFCC.
        network: the encoder's size.
        augment: variation of the training examples.
        learning_rate: peak of the schedule (a warm-up, then a cosine to zero).
        warmup: share of all steps in which the rate rises; of the time, where the trainer has a `max_time`.
        weight_decay: of AdamW.
        label_smoothing: probability spread over the other classes.
        soft_share: share of the teachers' posteriors in the targets, where there are any.
        aux_weight: weight of the loss that tells all known words apart, those outside the vocabulary too.
        seed: of the augmentation.
        start: checkpoint or bundle whose weights training begins with, to teach a trained network on; from one with
            the other head, the encoder's.
        lstm: torch's own; or the one written from its equations, which takes the same checkpoints; or a plain RNN.
    """

    confusions: nn.ModuleList
    """One confusion matrix for each of `GROUPS`; only with a classification head."""
    errors: SumMetric
    said: SumMetric
    """Wrong words and words in the mixtures of validation; only with a CTC head."""

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
        n_words = self.data.n_words if self.aux_weight and self.head == "classification" else 0
        network = build_network(
            self.head, self.features.n_mfcc, len(self.labels), self.network, self.lstm, n_words=n_words
        )
        setattr(self, PREFIX[self.head].rstrip("."), network)
        if self.start:
            self._begin_with(network, self.start)
        if self.head == "classification":
            self.confusions = nn.ModuleList(MulticlassConfusionMatrix(len(self.labels)) for _ in GROUPS)
        else:
            self.errors, self.said = SumMetric(), SumMetric()

    @property
    def _matrices(self) -> list[MulticlassConfusionMatrix]:
        return [matrix for matrix in self.confusions if isinstance(matrix, MulticlassConfusionMatrix)]

    def _begin_with(self, network: Network, start: Path) -> None:
        """Take over the weights of a checkpoint or bundle."""
        scorer, notes = load_network(start)
        if notes.get("head", "classification") != self.head:
            network.encoder.load_state_dict(scorer.network.encoder.state_dict())
        elif tuple(notes["labels"]) != self.labels:
            raise ConfigError(f"{start} knows other words than the data: {', '.join(notes['labels'])}")
        else:
            network.load_state_dict(scorer.network.state_dict(), strict=False)  # but for the training-only layer

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
        seed = (self.seed * 1000 + self.current_epoch) * 1000 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(seed)
        self.vary = Augment(self.augment, self.data.rooms.to(self.device), generator)

    def training_step(self, batch: Utterances | Mixtures, _: int) -> Tensor:
        loss = self._classify(batch) if isinstance(batch, Utterances) else self._transcribe(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch.plan.n_rows)
        return loss

    @torch.no_grad()
    def _features(self, batch: Utterances | Mixtures, sounding: Tensor) -> Tensor:
        """Of the batch, rendered and varied."""
        with torch.autocast(self.device.type, enabled=False):
            waveform, noise = render(batch.plan, self.bank)
            return self.vary.features(self.mfcc(self.vary.waveform(waveform, noise, sounding)))

    def _classify(self, batch: Utterances) -> Tensor:
        """Cross-entropy with the softened label, and with the word that is said."""
        features = self._features(batch, batch.sounding)
        network = self.acoustic
        if not self.aux_weight or not isinstance(network, Classifier):
            return weighted_loss(network(features).float(), self._targets(batch), batch.weight)
        logits, words = network.both(features)
        known = batch.word >= 0
        losses = nn.functional.cross_entropy(words.float(), batch.word.clamp(min=0), reduction="none")
        auxiliary = (losses * known).sum() / known.sum().clamp(min=1)
        return weighted_loss(logits.float(), self._targets(batch), batch.weight) + self.aux_weight * auxiliary

    def _targets(self, batch: Utterances) -> Tensor:
        """(batch, classes): the smoothed label, mixed with the teachers' posteriors where there are any."""
        n = len(self.labels)
        hard = nn.functional.one_hot(batch.label, n).float()
        hard = hard * (1 - self.label_smoothing) + self.label_smoothing / n
        soft = self.soft_share * (batch.teacher.sum(1, keepdim=True) > 0)
        return soft * batch.teacher + (1 - soft) * hard

    def _transcribe(self, batch: Mixtures) -> Tensor:
        """CTC loss of each mixture, summed over its tokens, divided by the batch."""
        sounding = torch.ones_like(batch.n_targets, dtype=torch.bool)
        posteriors = self.acoustic(self._features(batch, sounding)).float().log_softmax(2)
        n_steps = torch.full_like(batch.n_targets, posteriors.shape[1])
        blank = self.labels.index(BLANK)
        loss = nn.functional.ctc_loss(
            posteriors.transpose(0, 1), batch.targets, n_steps, batch.n_targets, blank, reduction="none",
            zero_infinity=True,
        )  # fmt: skip
        return loss.mean()

    def validation_step(self, batch: Any, _: int) -> None:
        if self.head == "ctc":
            waveform, targets, n_targets = batch
            posteriors = self(as_heard_live(waveform)).float().log_softmax(2)[0].cpu().numpy()
            heard = [span.label for span in greedy(posteriors, self.labels) if span.label != UNKNOWN]
            said = [self.labels[n] for n in targets[0, : n_targets[0]]]
            self.errors.update(edit_distance(said, heard))
            self.said.update(len(said))
            return
        logits = self(as_heard_live(render(batch.plan, self.bank)[0])).float()
        for group, confusion in enumerate(self._matrices):
            chosen = batch.group == group
            if chosen.any():
                confusion.update(logits[chosen], batch.label[chosen])
        loss = nn.functional.cross_entropy(logits, batch.label)
        self.log("val/loss", loss, sync_dist=True, batch_size=len(batch.label))

    def on_validation_epoch_end(self) -> None:
        found = self._figures()
        for name, figure in found.items():
            value = figure.value if isinstance(figure, Share) else figure
            if not math.isnan(value):
                self.log(f"val/{name}", value, prog_bar=name in ("balanced", "score", "commands"))
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            kept = {name: f.as_dict() if isinstance(f, Share) else f for name, f in found.items()}
            record = {"epoch": self.current_epoch, "figures": kept}
            write_json(Path(self.trainer.default_root_dir) / "validation.json", record)

    def _figures(self) -> dict[str, Share | float]:
        """Of the epoch's validation, all processes together."""
        if self.head == "ctc":
            said, errors = (int(counter.compute()) for counter in (self.said, self.errors))
            self.said.reset()
            self.errors.reset()
            return {"commands": Share(max(0, said - errors), said)}
        confusions = {}
        for name, confusion in zip(GROUPS, self._matrices, strict=True):
            confusions[name] = confusion.compute().cpu().numpy()
            confusion.reset()
        return figures(confusions, self.labels)

    def configure_optimizers(self) -> Any:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the peak learning rate.

        It follows the trainer's own length, so that a resumed run may be longer than it was meant to be; or its clock.
        """
        clock = next((c for c in self.trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
        if clock is None or clock.time_remaining() is None:
            return warm_cosine(step, int(self.trainer.estimated_stepping_batches), self.warmup)
        elapsed_s, left_s = clock.time_elapsed(), max(0.0, clock.time_remaining() or 0.0)
        share = elapsed_s / (elapsed_s + left_s)
        if self.trainer.world_size > 1:  # all processes must step alike
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


def weighted_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy with soft targets (batch, classes), each example by its weight (batch,)."""
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * weight).sum() / weight.sum()


def figures(confusions: dict[str, np.ndarray], labels: Sequence[str]) -> dict[str, Share | float]:
    """The figures of validation from the confusion matrices of its groups; NaN for what it does not hold.

    `score` is the one to choose by: the mean of `keywords`, `home` and one minus the mean of the shares of unknown
    words, speech, events and noise that are taken for a command; what is not there is left out.
    """
    official = summarize(confusions["official"], labels)
    home = fold(confusions["home"], labels)
    taken = {"unknown_as_command": official.unknown_as_command}
    for group in ("speech", "events", "noise"):
        folded = fold(confusions[group], labels)
        taken[f"{group}_as_command"] = Share(int(folded[:, : len(KEYWORDS)].sum()), int(folded.sum()))
    right = int(np.trace(home)) + int(home[len(KEYWORDS), len(KEYWORDS) + 1])  # a colour heard as nothing is right
    at_home = Share(right, int(home.sum()))
    found: dict[str, Share | float] = {
        "balanced": official.balanced,
        "keywords": official.keywords,
        "on": official.recall["on"],
        "off": official.recall["off"],
        "home": at_home,
        **taken,
    }
    alarms = [share.value for share in taken.values() if share.total]
    good = [share.value for share in (official.keywords, at_home) if share.total]
    found["score"] = float(np.mean([*good, 1 - float(np.mean(alarms))] if alarms else good))
    return found
