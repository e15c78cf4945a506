"""Compute the inner values of a bundle: MFCCs, attention, and the gates of each LSTM layer.  Needs `onnx`, not torch.

At step t an ONNX LSTM computes its gates from the input x_t and the previous hidden state h_{t-1}:

    gate_t = sigmoid(W . x_t + R . h_{t-1} + b_W + b_R)

Both are tensors of the graph, so the gates of all steps are computed together.
Source: the operator LSTM of the ONNX specification, which stacks the rows as input, output, forget, cell.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from speech.bundle import DEFAULT_MODEL, BundleInfo, bundle_path
from speech.errors import BundleError
from speech.recognizer import Recognizer, open_session

Values = NDArray[np.float32]


@dataclass(frozen=True)
class LayerGates:
    """Gates of one LSTM layer and direction: each (steps, hidden), 0..1, in order of time."""

    name: str
    """l0, l0_reverse, l1, ..."""
    forget: Values
    input: Values
    output: Values


@dataclass(frozen=True)
class Trace:
    """Inner values of the network for one utterance."""

    scores: Values
    """(labels,), or (steps, labels) with a CTC head; each row sums to one."""
    features: Values
    """(frames, n_mfcc) MFCCs before normalisation."""
    frame_s: Values
    """(frames,) centre of each frame, in seconds since the utterance began."""
    attention: Values
    """(heads, steps) attention weights, each row sums to one; no rows with a CTC head."""
    gates: tuple[LayerGates, ...]
    """From the first layer to the last, forward before backward."""
    step_s: Values
    """(steps,) centre of the input frames of each LSTM step, in seconds."""


class Tracer:
    """A bundle whose inner tensors can be read."""

    def __init__(self, path: Path = DEFAULT_MODEL) -> None:
        """Open a bundle.

        Args:
            path: a bundle, or the name of a shipped one.
        Raises:
            BundleError: the file is not a bundle of this format, or has no LSTM.
        """
        self.info: BundleInfo = Recognizer.load(path).info
        model = onnx.load(bundle_path(path))
        self._names = [output.name for output in model.graph.output]
        layers = [[*node.input[:4], node.output[0]] for node in model.graph.node if node.op_type == "LSTM"]
        readings = len(self.info.training.get("speeds", [1]))  # the first is at the speed of the waveform
        self._layers = layers[: len(layers) // readings]
        if not self._layers or "features" not in self._names:
            raise BundleError(f"{path} has no LSTM layers to examine")
        inside = {name for layer in self._layers for name in layer}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(inside))
        self._session = open_session(model.SerializeToString())

    def trace(self, waveform: Values) -> Trace:
        """Run the network on one utterance.

        Args:
            waveform: (time,) float32 in -1..1 at `info.sample_rate_hz`, at least `speech.recognizer.SHORTEST_S` long.
        """
        names = [*self._names, *(name for layer in self._layers for name in layer)]
        values = dict(zip(names, self._session.run(names, {"waveform": waveform[None]}), strict=True))
        features = values["features"][0]
        gates = [g for n, layer in enumerate(self._layers) for g in _gates(n, *(values[name] for name in layer))]
        n_steps = len(gates[0].forget)
        hop_s, window_s = (self.info.features[name] / 1000 for name in ("hop_ms", "window_ms"))
        return Trace(
            scores=values["scores"][0],
            features=features,
            frame_s=(hop_s * np.arange(len(features)) + window_s / 2).astype(np.float32),
            attention=values["attention"][0] if "attention" in values else np.zeros((0, n_steps), np.float32),
            gates=tuple(gates),
            step_s=(self.info.offset_s + self.info.step_s * np.arange(n_steps)).astype(np.float32),
        )


def _gates(layer: int, x: Values, weight: Values, recurrent: Values, bias: Values, hidden: Values) -> list[LayerGates]:
    """The gates of one layer.

    Args:
        x: (steps, 1, n_inputs)
        weight, recurrent, bias: (directions, 4 * n_hidden, n_inputs), (..., n_hidden), (directions, 8 * n_hidden)
        hidden: (steps, directions, 1, n_hidden)
    """
    found = []
    for direction, suffix in enumerate(("", "_reverse")[: len(weight)]):
        h = hidden[:, direction, 0]  # (steps, n_hidden)
        none = np.zeros_like(h[:1])
        before = np.concatenate([h[1:], none] if suffix else [none, h[:-1]])
        total = x[:, 0] @ weight[direction].T + before @ recurrent[direction].T
        total += bias[direction].reshape(2, -1).sum(0)
        i, o, f = (1 / (1 + np.exp(-part)) for part in np.split(total, 4, axis=1)[:3])
        found.append(LayerGates(f"l{layer}{suffix}", forget=f, input=i, output=o))
    return found
