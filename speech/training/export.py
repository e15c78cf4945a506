"""Checkpoint -> bundle: one ONNX file with the front end in the graph and everything else in its metadata."""

import io
import json
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
from speech.recognizer import Recognizer
from speech.training.features import MFCC, FeatureConfig
from speech.training.networks import Encoder, Head, LSTMKind, Network, NetworkConfig, build_network

PREFIX: dict[Head, str] = {"classification": "classifier.", "ctc": "transcriber."}
"""Where a checkpoint holds the network of each head."""
WINDOW_S: dict[Head, float] = {"classification": 1.0, "ctc": 3.0}
"""What the live loop shows the network at a time."""
TOLERANCE = 1e-4
"""Largest difference of a score between torch and ONNX Runtime."""


class Scorer(nn.Module):
    """What the bundle computes: waveform (batch, time) -> scores that sum to one.

    They are (batch, classes), or (batch, steps, tokens) with a CTC head.  `offsets` (labels,) are added to the logits,
    which are then divided by `temperature`.
    """

    offsets: Tensor

    def __init__(self, mfcc: MFCC, network: Network) -> None:
        super().__init__()
        self.mfcc, self.network, self.temperature = mfcc, network, 1.0
        self.register_buffer("offsets", torch.zeros(1))

    def logits(self, waveform: Tensor) -> Tensor:
        """The same before temperature and softmax."""
        logits: Tensor = self.network(self.mfcc(waveform)) + self.offsets
        return logits

    def shift(self, offsets: Mapping[str, float], labels: Sequence[str]) -> None:
        """Set the offsets of some labels, such as one that is taken for others too often.

        Raises:
            ConfigError: a label that the network lacks.
        """
        strange = set(offsets) - set(labels)
        if strange:
            raise ConfigError(f"offsets of {', '.join(sorted(strange))}: the network knows {', '.join(labels)}")
        self.offsets = torch.tensor([offsets.get(label, 0.0) for label in labels])

    def forward(self, waveform: Tensor) -> Tensor:
        return torch.softmax(self.logits(waveform) / self.temperature, dim=-1)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with which a share of p of the answers at confidence p is right, as nearly as one number can.

    It minimises the cross-entropy; which label is the best stays as it is.

    Args:
        logits: (clips, classes), of clips that were not trained on.
        labels: (clips,)
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    candidates = torch.logspace(-0.7, 0.7, 141).tolist()  # 0.2 to 5
    losses = [float(nn.functional.cross_entropy(logits / t, labels)) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def load_checkpoint(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """The network of a checkpoint, in evaluation mode, and what the recipe noted beside it.

    Raises:
        BundleError: when the file is no checkpoint of this project's recipe.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        notes = checkpoint["speech"]
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} is no checkpoint of recipes.train: {reason}") from error
    features = FeatureConfig(**notes["features"])
    lstm: LSTMKind = "rnn" if notes.get("lstm") == "rnn" else "torch"
    head: Head = notes.get("head", "classification")
    network = build_network(head, features.n_mfcc, len(notes["labels"]), NetworkConfig(**notes["network"]), lstm)
    prefix = PREFIX[head]
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(state)
    return Scorer(MFCC(features), network).eval(), notes


def load_network(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """The network of a checkpoint or of a bundle, in evaluation mode, and what was noted beside it.

    Raises:
        BundleError: the file is neither, or a bundle of another make.
    """
    return load_bundle(path) if path.suffix == ".onnx" else load_checkpoint(path)


def load_bundle(path: Path) -> tuple[Scorer, dict[str, Any]]:
    """The network that a bundle was exported from, so that training can go on from it.

    The exporter folds each normalisation into the convolution before it; here it does nothing but add the bias, which
    the notes tell as "folded": to train on, see `fit_normalisation`.

    Raises:
        BundleError: the file is no bundle of this project, or not of a network that this version builds.
    """
    info = Recognizer.load(path).info
    graph = onnx.load(str(path)).graph
    arrays = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in graph.initializer}
    used = {
        kind: [[arrays[name] for name in node.input if name in arrays] for node in graph.node if node.op_type == kind]
        for kind in ("Conv", "LSTM", "MatMul")
    }
    try:
        features = FeatureConfig(**info.features)
        config = NetworkConfig(**info.training["network"])
        head: Head = "ctc" if info.head == "ctc" else "classification"
        network = build_network(head, features.n_mfcc, len(info.labels), config, "torch")
        state = {k.removeprefix("network."): v for k, v in arrays.items() if k.startswith("network.")}
        state |= _unfolded(network, [c for c in used["Conv"] if c])
        for layer, (gates, recurrent, bias) in enumerate(used["LSTM"]):
            state |= _lstm_state(layer, gates, recurrent, bias)
        products = [m for m in used["MatMul"] if m]
        weights = {"classification": ("attention.0.weight", "attention.2.weight"), "ctc": ("weight",)}[head]
        state |= {f"head.{name}": weight.T for name, (weight,) in zip(weights, products, strict=True)}
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path} does not hold a network that training can go on from: {error}") from error
    notes = {"labels": list(info.labels), "features": asdict(features), "network": asdict(config), "head": head}
    scorer = Scorer(MFCC(features), network).eval()
    scorer.shift(info.training.get("offsets", {}), info.labels)
    scorer.temperature = info.training.get("temperature", 1.0)
    return scorer, {**notes, "folded": True}


def _unfolded(network: Network, convolutions: list[list[Tensor]]) -> dict[str, Tensor]:
    """The state of the encoder's convolutions and of the fresh normalisation behind each, from weights and biases."""
    modules = [(f"encoder.thin.{name}", module) for name, module in network.encoder.thin.named_modules()]
    convs = [name for name, module in modules if isinstance(module, nn.Conv1d)]
    norms = [(name, module) for name, module in modules if isinstance(module, nn.BatchNorm1d)]
    state = {"encoder.normalize.num_batches_tracked": torch.tensor(0)}
    for conv, (norm, module), (weight, bias) in zip(convs, norms, convolutions, strict=True):
        state |= {f"{norm}.{name}": value for name, value in module.state_dict().items()}
        state |= {f"{conv}.weight": weight, f"{norm}.bias": bias}
        state[f"{norm}.running_var"] = torch.ones_like(bias) - module.eps
    return state


def _lstm_state(layer: int, gates: Tensor, recurrent: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """ONNX stacks the gates as input, output, forget, cell; torch as input, forget, cell, output."""

    def ordered(stacked: Tensor) -> Tensor:
        i, o, f, c = stacked.chunk(4)
        return torch.cat([i, f, c, o])

    state: dict[str, Tensor] = {}
    for direction, suffix in enumerate(("", "_reverse")):
        b_ih, b_hh = bias[direction].chunk(2)
        parts = {"weight_ih": gates[direction], "weight_hh": recurrent[direction], "bias_ih": b_ih, "bias_hh": b_hh}
        state |= {f"encoder.lstm.{name}_l{layer}{suffix}": ordered(part) for name, part in parts.items()}
    return state


def export(scorer: Scorer, info: BundleInfo, target: Path) -> float:
    """Write the bundle and compare it with torch on noise at several levels and lengths.

    Returns:
        the largest difference of a score.
    Raises:
        BundleError: when it exceeds `TOLERANCE`; the file is removed.
    """
    example = torch.zeros(2, round(info.window_s * info.sample_rate_hz))
    dynamic = {"waveform": {0: "batch", 1: "time"}, "scores": {0: "batch"}}
    if info.head == "ctc":
        dynamic["scores"][1] = "steps"
    graph = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # The exporter based on torch.export takes an LSTM of unknown length apart; this one keeps it whole.
        torch.onnx.export(
            scorer,
            (example,),
            graph,  # type: ignore[arg-type]  # a file object will do
            dynamo=False,
            dynamic_axes=dynamic,
            opset_version=18,
            input_names=["waveform"],
            output_names=["scores"],
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


def parity(scorer: Scorer, bundle: Path, sample_rate_hz: int, recordings: list[Tensor] | None = None) -> float:
    """Largest difference of a score between torch and the bundle, on noise and on `recordings` (each (time,))."""
    session = onnxruntime.InferenceSession(str(bundle), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    noise = [
        level * torch.randn(int(seconds * sample_rate_hz), generator=generator)
        for level in (0.0, 1e-4, 1e-2, 0.3)
        for seconds in (0.5, 1.0, 1.7)
    ]
    worst = 0.0
    for waveform in noise + (recordings or []):
        with torch.no_grad():
            ours = scorer(waveform[None]).numpy()
        theirs = session.run(None, {"waveform": waveform[None].numpy()})[0]
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def bundle_info(
    notes: dict[str, Any],
    threshold: float,
    training: dict[str, Any],
    figures: dict[str, Any],
    thresholds: Mapping[str, float] | None = None,
) -> BundleInfo:
    """The metadata of a bundle for a checkpoint's notes; `thresholds` of single words go before `threshold`."""
    feature_config, network = FeatureConfig(**notes["features"]), NetworkConfig(**notes["network"])
    head: Head = notes.get("head", "classification")
    timing = Encoder.timing(network, feature_config.hop_ms / 1000, feature_config.window_ms / 1000)
    return BundleInfo(
        format=FORMAT,
        head=head,
        labels=tuple(notes["labels"]),
        sample_rate_hz=feature_config.sample_rate_hz,
        window_s=WINDOW_S[head],
        step_s=timing[0] if head == "ctc" else 0.0,
        offset_s=timing[1] if head == "ctc" else 0.0,
        threshold=threshold,
        thresholds=dict(thresholds or {}),
        features=json.loads(json.dumps(asdict(feature_config))),
        training=training,
        figures=figures,
    )
