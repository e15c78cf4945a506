"""How each head is trained: labels, examples, loss and validation figures.

A new head needs a class here, entered in `TRAINED`, a network (`speech.model.networks`) and a reader in the live half.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchaudio.functional import edit_distance
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from recipes.data.compose import GROUPS, Composer
from recipes.data.elements import Plan
from recipes.data.recordings import SCARCE
from recipes.metrics import Share, fold, summarize
from speech.bundle import BLANK, SILENCE, UNKNOWN
from speech.model.networks import Classifier, Network
from speech.sequences import greedy

LABEL_SMOOTHING = 0.05
"""Probability that is spread over the other classes."""
WORD_WEIGHT = 0.3
"""Weight of a second loss that separates all words, also those outside the classes."""
FRAMES = 100
"""Frames of a typical utterance: a batch of sequences has as much audio as one of utterances."""

Figures = dict[str, Share | float]


class TrainedHead(ABC):
    """How one head is trained.  It has no state."""

    name: ClassVar[str]
    """Name of the head in a bundle."""
    monitor: ClassVar[str]
    """Validation figure that selects the best epoch; higher is better."""

    @abstractmethod
    def labels(self, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        """The labels of the scores, given the vocabulary: words, `_unknown_` and `_silence_`."""

    @abstractmethod
    def plans(self, composer: Composer, batch_size: int, rng: np.random.Generator) -> Iterator[Plan]:
        """Training batches without end."""

    @abstractmethod
    def fixed(self, composer: Composer, per_kind: int, batch_size: int) -> list[tuple[Plan, Tensor]]:
        """The validation batches, the same in each epoch, each with the group of its examples."""

    @abstractmethod
    def loss(self, network: Network, features: Tensor, plan: Plan) -> Tensor:
        """The loss of a training batch with features (batch, frames, N_MFCC)."""

    @abstractmethod
    def counters(self, n_labels: int) -> nn.Module:
        """Counters for validation."""

    @abstractmethod
    def count(self, counters: Any, logits: Tensor, plan: Plan, group: Tensor, labels: Sequence[str]) -> None:
        """Update the counters with the logits of a validation batch."""

    @abstractmethod
    def figures(self, counters: Any, labels: Sequence[str], commands: Sequence[str]) -> Figures:
        """The figures over all validation batches of all processes; resets the counters."""


class TrainedClassification(TrainedHead):
    """One word per utterance: cross-entropy, and a second one over all words of the material."""

    name, monitor = "classification", "val/score"

    def labels(self, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        return vocabulary

    def plans(self, composer: Composer, batch_size: int, rng: np.random.Generator) -> Iterator[Plan]:
        return composer.utterances(batch_size, rng)

    def fixed(self, composer: Composer, per_kind: int, batch_size: int) -> list[tuple[Plan, Tensor]]:
        return composer.fixed(per_kind, batch_size)

    def loss(self, network: Network, features: Tensor, plan: Plan) -> Tensor:
        logits, words = cast(Classifier, network).both(features)
        loss = nn.functional.cross_entropy(logits.float(), plan.label, label_smoothing=LABEL_SMOOTHING)
        known = plan.extra >= 0
        losses = nn.functional.cross_entropy(words.float(), plan.extra.clamp(min=0), reduction="none")
        return loss + WORD_WEIGHT * (losses * known).sum() / known.sum().clamp(min=1)

    def counters(self, n_labels: int) -> nn.ModuleDict:
        """One confusion matrix per group of `GROUPS`."""
        return nn.ModuleDict({group: MulticlassConfusionMatrix(n_labels) for group in GROUPS})

    def count(self, counters: Any, logits: Tensor, plan: Plan, group: Tensor, labels: Sequence[str]) -> None:
        for number, name in enumerate(GROUPS):
            chosen = group == number
            if chosen.any():
                counters[name].update(logits[chosen], plan.label[chosen])

    def figures(self, counters: Any, labels: Sequence[str], commands: Sequence[str]) -> Figures:
        confusions = {group: counters[group].compute().cpu().numpy() for group in GROUPS}
        for counter in counters.values():
            counter.reset()
        return figures(confusions, labels, commands)


class TrainedCTC(TrainedHead):
    """A sequence of words an utterance: CTC loss on sequences of single words."""

    name, monitor = "ctc", "val/commands"

    def labels(self, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        return (*(label for label in vocabulary if label != SILENCE), BLANK)

    def plans(self, composer: Composer, batch_size: int, rng: np.random.Generator) -> Iterator[Plan]:
        return composer.sequences(batch_size * FRAMES, rng)

    def fixed(self, composer: Composer, per_kind: int, batch_size: int) -> list[tuple[Plan, Tensor]]:
        plans: list[tuple[Plan, Tensor]] = []
        for plan in composer.sequences(batch_size * FRAMES, np.random.default_rng(0)):
            plans.append((plan, torch.zeros(plan.n_rows, dtype=torch.long)))
            if sum(earlier.n_rows for earlier, _ in plans) >= per_kind:
                break
        return plans

    def loss(self, network: Network, features: Tensor, plan: Plan) -> Tensor:
        """CTC loss per sequence, summed over its tokens; mean over the batch."""
        log_probs = network(features).float().log_softmax(2)
        n_steps, blank = torch.full_like(plan.extra, log_probs.shape[1]), log_probs.shape[2] - 1
        loss = nn.functional.ctc_loss(
            log_probs.transpose(0, 1), plan.label, n_steps, plan.extra, blank, reduction="none", zero_infinity=True
        )
        return loss.mean()

    def counters(self, n_labels: int) -> nn.ModuleDict:
        """Counters of word errors and of words said."""
        return nn.ModuleDict({"errors": SumMetric(), "said": SumMetric()})

    def count(self, counters: Any, logits: Tensor, plan: Plan, group: Tensor, labels: Sequence[str]) -> None:
        log_probs = logits.float().log_softmax(2).cpu().numpy()
        for row, tokens, n in zip(log_probs, plan.label, plan.extra, strict=True):
            heard = [found.word for found in greedy(row, labels) if found.word != UNKNOWN]
            said = [word for token in tokens[:n] if (word := labels[token]) != UNKNOWN]
            counters["errors"].update(edit_distance(said, heard))
            counters["said"].update(len(said))

    def figures(self, counters: Any, labels: Sequence[str], commands: Sequence[str]) -> Figures:
        said, errors = (int(counters[name].compute()) for name in ("said", "errors"))
        for counter in counters.values():
            counter.reset()
        return {"commands": Share(max(0, said - errors), said)}


TRAINED: Mapping[str, TrainedHead] = {head.name: head for head in (TrainedClassification(), TrainedCTC())}


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
