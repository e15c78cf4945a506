"""Checkpoint -> bundle: one ONNX file with the front end in its graph and all settings in its metadata."""

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from speech.bundle import FORMAT, BundleInfo
from speech.errors import BundleError, ConfigError
from speech.model.features import FEATURES, MFCC
from speech.model.networks import NETWORKS, Classifier, Encoder, LSTMKind, Network, NetworkConfig
from speech.recognizer import Recognizer
from speech.segment import SAMPLE_RATE_HZ

PREFIX = "acoustic."
"""Prefix of the names of the network's weights in a checkpoint."""
TOLERANCE = 1e-4
"""Largest difference of an output between torch and ONNX Runtime."""
SPEEDS = (1.0, 0.85, 1.15)
"""An utterance is read as if it were played this many times as fast."""
EXAMPLE_S = 1
"""Length of the waveform that the exporter traces."""
SCORER = "scorer"
"""Prefix of the names of the weights in a bundle."""
AXES = {"waveform": {0: "batch", 1: "time"}, "features": {0: "batch", 1: "frames"}}
"""Axes of variable length; `Network.axes` names those of the other outputs."""


def speeds_of(head: str) -> tuple[float, ...]:
    """The speeds at which a bundle reads an utterance; the steps of a CTC head have no mean."""
    return SPEEDS if head == Classifier.name else SPEEDS[:1]


class Scorer(nn.Module):
    """The computation of a bundle: waveform (batch, time) -> scores that sum to one.

    The scores are (batch, classes), or (batch, steps, tokens) with a CTC head.  They are the softmax of
    (logits + `offsets`) / `temperature`; `offsets` is (labels,).  A classifier reads the utterance once at each of the
    `SPEEDS`; logits and embedding are the means over these readings.
    """

    offsets: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.temperature = network, 1.0
        self.mfccs = nn.ModuleList(MFCC(speed) for speed in speeds_of(network.name))
        self.register_buffer("offsets", torch.zeros(1))

    def logits(self, waveform: Tensor) -> Tensor:
        """Logits with offsets, before temperature and softmax."""
        return self._read(waveform)["scores"]

    def _read(self, waveform: Tensor) -> dict[str, Tensor]:
        """The outputs with logits as scores; what is not a mean over the readings is of the first."""
        features = [mfcc(waveform) for mfcc in self.mfccs]
        readings = [self.network.outputs(one) for one in features]
        log_posteriors = [reading["scores"].log_softmax(-1) for reading in readings]
        found = readings[0] | {"scores": sum(log_posteriors) / len(readings) + self.offsets, "features": features[0]}
        if "embedding" in found:
            found["embedding"] = sum(reading["embedding"] for reading in readings) / len(readings)
        return found

    def shift(self, offsets: Mapping[str, float], labels: Sequence[str]) -> None:
        """Set the offsets of some labels and clear the others, for example to favour a label that is often missed.

        Raises:
            ConfigError: the network lacks a label.
        """
        strange = set(offsets) - set(labels)
        if strange:
            raise ConfigError(f"offsets of {', '.join(sorted(strange))}: the network knows {', '.join(labels)}")
        self.offsets = torch.tensor([offsets.get(label, 0.0) for label in labels])

    def forward(self, waveform: Tensor) -> Tensor:
        return self.outputs(waveform)["scores"]

    def outputs(self, waveform: Tensor) -> dict[str, Tensor]:
        """All outputs of a bundle, in their order.

        Returns:
            `scores`, as above; the network's other outputs, such as the `embedding` of single words;
            `features` (batch, frames, n_mfcc).
        """
        found = self._read(waveform)
        return found | {"scores": torch.softmax(found["scores"] / self.temperature, dim=-1)}


class _Graph(nn.Module):
    """A scorer with all its outputs, for the exporter, which calls `forward`.

    This module stays in training mode, the scorer inside is in evaluation mode.  The exporter then does not merge
    equal weights, so each keeps its name.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.scorer.outputs(waveform).values())


def best_temperature(logits: Tensor, labels: Sequence[str], classes: Sequence[str]) -> float:
    """The temperature, 0.2 to 5, that minimises the cross-entropy.

    It calibrates the confidence: of the answers with confidence p, about a share of p should be right.  The best label
    of a clip does not change.

    Args:
        logits: (clips, classes) of clips that were not trained on.
        labels: true class of each clip.
        classes: the labels of the network.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    candidates = torch.logspace(-0.7, 0.7, 141).tolist()  # 0.2 to 5
    target = torch.tensor([list(classes).index(label) for label in labels])
    losses = [float(nn.functional.cross_entropy(logits / t, target)) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def load_checkpoint(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """Load the network of a checkpoint, in evaluation mode, and the recipe's notes.

    Raises:
        BundleError: the file is no checkpoint of this project's recipe, or holds an older network.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        notes = checkpoint["speech"]
        state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
        return build_scorer(notes, state), notes
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} is no checkpoint of this version's recipes.train: {_first_line(error)}") from error


def load_bundle(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """Load the network of a bundle, in evaluation mode, and the notes needed to build it again.

    Raises:
        BundleError: the file is no bundle of this project, or this version cannot build its network.
    """
    info = Recognizer.load(path).info
    try:
        network = info.training["network"]
        notes = {"labels": list(info.labels), "features": info.features, "head": info.head, "network": network}
        notes["lstm"] = info.training.get("lstm", "torch")
        state = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(str(path)).graph.initializer}
        prefix = f"{SCORER}.network."
        scorer = build_scorer(notes, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        scorer.offsets = state[f"{SCORER}.offsets"]
    except (KeyError, TypeError, RuntimeError) as error:
        reason = _first_line(error)
        raise BundleError(f"{path} does not hold a network that can be trained further: {reason}") from error
    scorer.temperature = info.training.get("temperature", 1.0)
    return scorer, notes


def load_network(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """Load the network of a checkpoint or, if `path` ends in .onnx, a bundle, in evaluation mode, and its notes.

    Raises:
        BundleError: the file is neither.
    """
    return load_bundle(path) if path.suffix == ".onnx" else load_checkpoint(path)


def build_scorer(notes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Scorer:
    """Build the network that `notes` describe, with the weights of `state`, in evaluation mode.

    The word layer, which only training uses, is left out.

    Raises:
        RuntimeError: weights are missing, left over or have another shape.
    """
    if dict(notes["features"]) != FEATURES:
        raise RuntimeError(f"made with other features than this version's: {notes['features']}")
    lstm: LSTMKind = "rnn" if notes.get("lstm") == "rnn" else "torch"
    kind = NETWORKS[notes["head"]]
    network = kind(len(notes["labels"]), NetworkConfig(**notes["network"]), lstm)
    counters = {k: v for k, v in network.state_dict().items() if k.endswith(".num_batches_tracked")}  # not in a bundle
    network.load_state_dict(counters | {k: v for k, v in state.items() if not k.startswith("words.")})
    return Scorer(network).eval()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def export(scorer: Scorer, info: BundleInfo, target: Path) -> float:
    """Write the bundle and compare it with torch on noise at several levels and lengths.

    The file has no folded constants or fused operators, so that each weight keeps its name and `load_bundle` can read
    it.  ONNX Runtime folds and fuses when it opens the file.

    Returns:
        the largest difference between outputs, see `parity`.
    Raises:
        BundleError: it exceeds `TOLERANCE`; the file is removed.
    """
    example, axes = torch.zeros(2, EXAMPLE_S * info.sample_rate_hz), {**AXES, **scorer.network.axes}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        names = list(scorer.outputs(example))
        graph = io.BytesIO()
        # This exporter keeps an LSTM of variable length as one operator; the one based on torch.export splits it.
        torch.onnx.export(
            _Graph(scorer),
            (example,),
            graph,  # type: ignore[arg-type]  # a file object works too
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamic_axes={name: axes[name] for name in ("waveform", *names)},
            opset_version=18,
            input_names=["waveform"],
            output_names=names,
        )
    model = onnx.load_model_from_string(graph.getvalue())
    for key, value in info.as_metadata().items():
        model.metadata_props.add(key=key, value=value)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)
    difference = parity(scorer, target, info.sample_rate_hz)
    if not difference <= TOLERANCE:
        target.unlink()
        raise BundleError(f"torch and ONNX Runtime differ by {difference:.2g}, more than {TOLERANCE:g}")
    return difference


def parity(scorer: Scorer, bundle: Path, sample_rate_hz: int, recordings: Sequence[Tensor] = ()) -> float:
    """Largest difference between the outputs of torch and of the bundle, on noise and on `recordings` (each (time,)).

    Where an output exceeds 1, as MFCC do, the difference is relative to the largest absolute value.
    """
    session = onnxruntime.InferenceSession(str(bundle), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    noise = [
        level * torch.randn(int(seconds * sample_rate_hz), generator=generator)
        for level in (0.0, 1e-4, 1e-2, 0.3)
        for seconds in (0.2, 0.5, 1.0, 1.7)
    ]
    worst = 0.0
    for waveform in [*noise, *recordings]:
        with torch.no_grad():
            ours = scorer.outputs(waveform[None])
        theirs = session.run(list(ours), {"waveform": waveform[None].numpy()})
        for one, other in zip(ours.values(), theirs, strict=True):
            scale = max(1.0, float(one.abs().max()))
            worst = max(worst, float(np.abs(one.numpy() - other).max()) / scale)
    return worst


def bundle_info(
    notes: dict[str, Any],
    threshold: float,
    training: dict[str, Any],
    figures: dict[str, Any],
    thresholds: Mapping[str, float] | None = None,
) -> BundleInfo:
    """The metadata of a bundle, from a checkpoint's notes.

    Args:
        notes: of the checkpoint.
        threshold: for all words that `thresholds` does not list.
        training: what it was trained on and how; the network's settings are added.
        figures: what was measured.
        thresholds: of single words.
    """
    timing = Encoder.timing()
    return BundleInfo(
        format=FORMAT,
        head=notes["head"],
        labels=tuple(notes["labels"]),
        sample_rate_hz=SAMPLE_RATE_HZ,
        window_s=NETWORKS[notes["head"]].window_s,
        step_s=timing[0],
        offset_s=timing[1],
        threshold=threshold,
        thresholds=dict(thresholds or {}),
        features=notes["features"],
        training={
            **training,
            "speeds": list(speeds_of(notes["head"])),
            "network": asdict(NetworkConfig(**notes["network"])),
            "lstm": notes.get("lstm", "torch"),
        },
        figures=figures,
    )
