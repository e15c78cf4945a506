"""A network trained on far more speech than we have, whose embedding ours learns to predict beside its own task.

Google's speech_embedding: a small convolutional network that was trained to tell 5,000 keyword groups apart in
200 million clips.  Nothing of it goes into a bundle.  The weights (Apache-2.0) come with the package openwakeword.

Source: Lin et al. 2020, Training Keyword Spotters with Limited and Synthesized Speech Data; as ONNX by openWakeWord.
"""

from importlib.util import find_spec
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from speech.errors import ConfigError

N_EMBEDDING = 96
PAD = 3840
"""Samples of silence put around a waveform, so that the edges are embedded too."""
STEP_S = 0.04
"""Distance of the encoder's steps for which `around_embeddings` holds."""


def find_teacher() -> Path:
    """The folder of the installed package's models.

    Raises:
        ConfigError: the package is not installed.
    """
    package = find_spec("openwakeword")
    folder = Path(package.origin).parent / "resources" / "models" if package and package.origin else None
    if not folder or not (folder / "embedding_model.onnx").is_file():
        raise ConfigError("the teacher comes with openwakeword 0.4.0: pip install openwakeword==0.4.0")
    return folder


class SpeechEmbedding(nn.Module):
    """The teacher, applied to audio of any length at once: its convolutions over time have no padding.

    Args of forward:
        waveform: (batch, time), float32 in -1..1, 16 kHz; time >= 512 + 75 * 160 samples.
    Returns of forward:
        (batch, n, 96), n = 1 + (frames - 76) // 8 with frames = 1 + (time - 512) // 160; embedding i is of the
        frames from 8 * i on.
    """

    kernel: Tensor
    filters: Tensor

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        folder = folder or find_teacher()
        mel = _weights(folder / "melspectrogram.onnx")
        kernel = torch.cat([mel["0.stft.conv_real.weight"], mel["0.stft.conv_imag.weight"]])
        self.register_buffer("kernel", kernel)  # (2 * bins, 1, 512)
        self.register_buffer("filters", mel["1.melW"].T.contiguous())  # (32, bins)
        self.layers = _layers(folder / "embedding_model.onnx")
        for parameter in self.parameters():  # a third faster on a CPU
            parameter.data = (
                parameter.contiguous(memory_format=torch.channels_last) if parameter.ndim == 4 else parameter
            )
        self.requires_grad_(False).eval()

    def mel(self, waveform: Tensor) -> Tensor:
        """(batch, time) -> (batch, frames, 32): decibels, at most 80 below each item's loudest, scaled."""
        real, imaginary = nn.functional.conv1d(32767 * waveform[:, None], self.kernel, stride=160).chunk(2, 1)
        power = (self.filters @ (real * real + imaginary * imaginary)).clamp(min=1e-10)
        decibels = 10 * power.log10()
        decibels = torch.maximum(decibels, decibels.amax((1, 2), keepdim=True) - 80)
        return decibels.transpose(1, 2) / 10 + 2

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            mel = self.mel(waveform)
        embedding: Tensor = self.layers(mel[:, None])  # (batch, 96, n, 1)
        return embedding.squeeze(3).transpose(1, 2)


class _LeakyMax(nn.Module):
    """Leaky ReLU, cut off below."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x, 0.2).clamp(min=-0.4)


def around_embeddings(hidden: Tensor, n: int) -> Tensor:
    """The encoder's state in the middle of each embedding of a waveform with `PAD` around it.

    An embedding's middle is 0.391 s behind its beginning; step k of the encoder is at 0.0525 + 0.04 k s. So the middle
    of embedding i, 80 ms from the last one, lies between the steps 2 + 2 i and 3 + 2 i.

    Args:
        hidden: (batch, steps, n_hidden)
        n: number of embeddings.
    Returns:
        (batch, m, n_hidden), m = min(n, (steps - 2) // 2)
    """
    m = min(n, (hidden.shape[1] - 2) // 2)
    return hidden[:, 2 : 2 + 2 * m].unflatten(1, (m, 2)).mean(2)


def _weights(path: Path) -> dict[str, Tensor]:
    return {i.name: torch.tensor(numpy_helper.to_array(i)) for i in onnx.load(str(path)).graph.initializer}


def _layers(path: Path) -> nn.Sequential:
    """The convolutions, activations and poolings of the file, in its order; axes are (frames, mel bands)."""
    weights, layers = _weights(path), list[nn.Module]()
    for node in onnx.load(str(path)).graph.node:
        options = {a.name: list(a.ints) for a in node.attribute}
        parameters = [weights[name] for name in node.input[1:] if name in weights]
        if node.op_type == "Conv":
            weight = parameters[0]
            # Padding is over the bands only; the first convolution's stands in a node of its own.
            n_out, n_in, frames, bands = weight.shape
            conv = nn.Conv2d(n_in, n_out, (frames, bands), padding=(0, bands // 2), bias=len(parameters) > 1)
            conv.load_state_dict(dict(zip(("weight", "bias"), parameters, strict=False)))
            layers.append(conv)
        elif node.op_type == "BatchNormalization":
            norm = nn.BatchNorm2d(len(parameters[0]), eps=1e-3)
            names = ("weight", "bias", "running_mean", "running_var")
            norm.load_state_dict(dict(zip(names, parameters, strict=True)), strict=False)
            layers.append(norm)
        elif node.op_type == "MaxPool":
            layers.append(nn.MaxPool2d(tuple(options["kernel_shape"]), tuple(options["strides"])))
        elif node.op_type == "Relu":
            layers.append(nn.ReLU())
        elif node.op_type == "LeakyRelu":
            layers.append(_LeakyMax())
    return nn.Sequential(*layers)
