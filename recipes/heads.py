"""How each head is trained: labels, examples, loss and validation figures.

A new head needs a class here, entered in `TRAINED`, a network (`speech.model.networks`) and a class in
`speech.heads`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchaudio.functional import edit_distance
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from recipes.data.augment import as_heard_live
from recipes.data.corpus import SCARCE
from recipes.data.examples import GROUPS, UtteranceBatches, Utterances, ValidationUtterances
from recipes.data.material import SourceMix
from recipes.data.mixtures import MixtureBatches, Mixtures, encode, fixed_mixtures
from recipes.data.plan import as_bank, render
from recipes.metrics import Share, fold, summarize
from recipes.protocols.connected import evaluate_connected
from recipes.protocols.words import evaluate_words
from recipes.report import Result
from speech.bundle import BLANK, SILENCE, UNKNOWN
from speech.errors import DataError
from speech.model.export import Scorer, best_temperature
from speech.model.networks import Classifier
from speech.recognizer import Recognizer
from speech.sequences import greedy

if TYPE_CHECKING:
    from recipes.task import CommandData, CommandTask

Figures = dict[str, Share | float]


class Batches(Protocol):
    """Batches by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class TrainedHead(ABC):
    """How one head is trained.  It has no state: the data module holds its examples, the task its counters."""

    name: ClassVar[str]
    """Name of the head, as in `speech.heads`."""
    monitor: ClassVar[str]
    """Validation figure that selects the best epoch; higher is better."""

    @abstractmethod
    def labels(self, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        """The labels of the scores, given the vocabulary: words, `_unknown_` and `_silence_`."""

    @abstractmethod
    def mix(self, data: "CommandData") -> SourceMix:
        """The composition of an epoch."""

    @abstractmethod
    def batches(self, data: "CommandData", epoch: int) -> Dataset[Any]:
        """The training batches of this process for one epoch."""

    @abstractmethod
    def validation(self, data: "CommandData") -> Batches:
        """The validation batches, the same in each epoch.  Raises DataError if there are none."""

    @abstractmethod
    def loss(self, task: "CommandTask", batch: Any) -> Tensor:
        """The loss of a training batch."""

    @abstractmethod
    def metrics(self, n_labels: int) -> nn.Module:
        """Counters for validation."""

    @abstractmethod
    def validate(self, task: "CommandTask", batch: Any) -> None:
        """Update the counters with a validation batch."""

    @abstractmethod
    def figures(self, task: "CommandTask") -> Figures:
        """The figures over all validation batches of all processes; resets the counters."""

    def temperature(self, data: "CommandData", scorer: Scorer) -> float:
        """The temperature that divides the bundle's logits."""
        return 1.0

    @abstractmethod
    def evaluate(self, recognizer: Recognizer, data: "CommandData") -> Result:
        """Measure the exported bundle on the validation part."""


class TrainedClassification(TrainedHead):
    """One word per utterance: cross-entropy with soft targets, and a second loss over all words of the material."""

    name, monitor = "classification", "val/score"

    def labels(self, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        return vocabulary

    def mix(self, data: "CommandData") -> SourceMix:
        return data.mix

    def batches(self, data: "CommandData", epoch: int) -> Dataset[Any]:
        return UtteranceBatches(
            data.material, data.labels, data.mix, data.noise, data.teacher, data.batch_size, data.seed, epoch,
            data.share,
        )  # fmt: skip

    def validation(self, data: "CommandData") -> ValidationUtterances:
        n_words = len(data.corpus.select("validation", "words"))
        if not n_words:
            raise DataError(f"no validation recordings under {data.root}: validation_list.txt is empty")
        size = max(1, min(2 * data.batch_size, n_words // data.share[1]))  # at least one batch for each process
        return ValidationUtterances(data.corpus, data.labels, "validation", data.per_kind, size)

    def loss(self, task: "CommandTask", batch: Utterances) -> Tensor:
        features, network = task.features_of(batch, batch.sounding), cast(Classifier, task.acoustic)
        targets = soft_targets(batch, len(task.labels), task.label_smoothing, task.soft_share)
        if network.words is None:
            return weighted_loss(network(features).float(), targets, batch.weight)
        logits, words = network.both(features)
        known = batch.word >= 0
        losses = nn.functional.cross_entropy(words.float(), batch.word.clamp(min=0), reduction="none")
        auxiliary = (losses * known).sum() / known.sum().clamp(min=1)
        return weighted_loss(logits.float(), targets, batch.weight) + task.aux_weight * auxiliary

    def metrics(self, n_labels: int) -> nn.ModuleDict:
        """One confusion matrix per group of `GROUPS`."""
        return nn.ModuleDict({group: MulticlassConfusionMatrix(n_labels) for group in GROUPS})

    def validate(self, task: "CommandTask", batch: Utterances) -> None:
        logits = task(as_heard_live(render(batch.plan, task.bank)[0])).float()
        for number, group in enumerate(GROUPS):
            chosen = batch.group == number
            if chosen.any():
                task.metrics[group].update(logits[chosen], batch.label[chosen])
        loss = nn.functional.cross_entropy(logits, batch.label)
        task.log("val/loss", loss, sync_dist=True, batch_size=len(batch.label))

    def figures(self, task: "CommandTask") -> Figures:
        confusions = {}
        for group in GROUPS:
            confusions[group] = task.metrics[group].compute().cpu().numpy()
            task.metrics[group].reset()
        return figures(confusions, task.labels, task.data.commands)

    def temperature(self, data: "CommandData", scorer: Scorer) -> float:
        """The temperature that calibrates the official validation words."""
        with torch.no_grad():
            scored = [(scorer.logits(waveform), label) for waveform, label in official(data)]
        logits, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
        return round(best_temperature(logits, labels), 3)

    def evaluate(self, recognizer: Recognizer, data: "CommandData") -> Result:
        return evaluate_words(recognizer, data.corpus, "validation", data.commands)


class TrainedCTC(TrainedHead):
    """A sequence of words an utterance: CTC loss on mixtures of single words."""

    name, monitor = "ctc", "val/commands"

    def labels(self, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        return (*(label for label in vocabulary if label != SILENCE), BLANK)

    def mix(self, data: "CommandData") -> SourceMix:
        return data.mixtures

    def batches(self, data: "CommandData", epoch: int) -> Dataset[Any]:
        return MixtureBatches(data.material, data.labels, data.mixtures, data.noise, data.seed, epoch, data.share)

    def validation(self, data: "CommandData") -> list[tuple[Tensor, ...]]:
        mixtures = fixed_mixtures(data.corpus, "validation", data.per_kind, data.commands, seed=0)
        return [(torch.from_numpy(m.waveform)[None], *encode([m.transcript], data.labels)) for m in mixtures]

    def loss(self, task: "CommandTask", batch: Mixtures) -> Tensor:
        """CTC loss per mixture, summed over its tokens; mean over the batch."""
        sounding = torch.ones_like(batch.n_targets, dtype=torch.bool)
        log_probs = task.acoustic(task.features_of(batch, sounding)).float().log_softmax(2)
        n_steps, blank = torch.full_like(batch.n_targets, log_probs.shape[1]), task.labels.index(BLANK)
        loss = nn.functional.ctc_loss(
            log_probs.transpose(0, 1), batch.targets, n_steps, batch.n_targets, blank, reduction="none",
            zero_infinity=True,
        )  # fmt: skip
        return loss.mean()

    def metrics(self, n_labels: int) -> nn.ModuleDict:
        """Counters of word errors and of words said."""
        return nn.ModuleDict({"errors": SumMetric(), "said": SumMetric()})

    def validate(self, task: "CommandTask", batch: tuple[Tensor, Tensor, Tensor]) -> None:
        waveform, targets, n_targets = batch
        log_probs = task(as_heard_live(waveform)).float().log_softmax(2)[0].cpu().numpy()
        heard = [span.label for span in greedy(log_probs, task.labels) if span.label != UNKNOWN]
        said = [task.labels[n] for n in targets[0, : n_targets[0]]]
        task.metrics["errors"].update(edit_distance(said, heard))
        task.metrics["said"].update(len(said))

    def figures(self, task: "CommandTask") -> Figures:
        said, errors = (int(task.metrics[name].compute()) for name in ("said", "errors"))
        for counter in task.metrics.values():
            counter.reset()
        return {"commands": Share(max(0, said - errors), said)}

    def evaluate(self, recognizer: Recognizer, data: "CommandData") -> Result:
        return evaluate_connected(recognizer, data.corpus, "validation", min(200, data.per_kind), data.commands)


TRAINED: Mapping[str, TrainedHead] = {head.name: head for head in (TrainedClassification(), TrainedCTC())}


def soft_targets(batch: Utterances, n_labels: int, label_smoothing: float, soft_share: float) -> Tensor:
    """Targets (batch, n_labels): the smoothed label, mixed with the teachers' posteriors if there are any."""
    hard = nn.functional.one_hot(batch.label, n_labels).float()
    hard = hard * (1 - label_smoothing) + label_smoothing / n_labels
    soft = soft_share * (batch.teacher.sum(1, keepdim=True) > 0)
    return soft * batch.teacher + (1 - soft) * hard


def weighted_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy with soft targets (batch, classes); weights are (batch,)."""
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * weight).sum() / weight.sum()


def official(data: "CommandData") -> Iterator[tuple[Tensor, Tensor]]:
    """The official validation words after the live high-pass: (batch, time) and labels (batch,)."""
    bank, batches = as_bank(data.corpus, "cpu"), cast(ValidationUtterances, data.held_back)
    for batch in (batches[i] for i in range(len(batches))):
        chosen = batch.group == GROUPS.index("official")
        if chosen.any():
            yield as_heard_live(render(batch.plan, bank)[0])[chosen], batch.label[chosen]


def figures(confusions: Mapping[str, np.ndarray], labels: Sequence[str], commands: Sequence[str]) -> Figures:
    """The validation figures from the confusion matrices of its groups; NaN for empty groups.

    `score` selects the best epoch.  It is the mean of `keywords`, `home` and one minus the mean share of unknown words,
    speech, events and noise that are classified as a command.  Empty groups are left out.
    """
    n = len(commands)
    official = summarize(confusions["official"], labels, commands)
    home = fold(confusions["home"], labels, commands)
    taken = {"unknown_as_command": official.unknown_as_command}
    for group in ("speech", "events", "noise"):
        folded = fold(confusions[group], labels, commands)
        taken[f"{group}_as_command"] = Share(int(folded[:, :n].sum()), int(folded.sum()))
    right = int(np.trace(home)) + int(home[n, n + 1])  # another word classified as silence counts as right
    at_home = Share(right, int(home.sum()))
    found: Figures = {"balanced": official.balanced, "keywords": official.keywords}
    found |= {word: official.recall[word] for word in SCARCE if word in official.recall}
    found |= {"home": at_home, **taken}
    alarms = [share.value for share in taken.values() if share.total]
    good = [share.value for share in (official.keywords, at_home) if share.total]
    found["score"] = float(np.mean([*good, 1 - float(np.mean(alarms))] if alarms else good))
    return found
