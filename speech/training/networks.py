"""The encoder (stacked bidirectional LSTM) and its heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speech.errors import ConfigError
from speech.training.lstm import LSTM

LSTMKind = Literal["torch", "equations", "rnn"]
"""The fast LSTM; the one written from its equations, which takes the same weights; a plain RNN for contrast."""


Head = Literal["classification", "ctc"]
"""One word in a window, or a sequence of words."""


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the encoder."""

    channels: int = 128
    """Channels of the first convolution over time, which sees the MFCC frames."""
    stride: int = 2
    """Frames that the first convolution moves on by."""
    stacking_channels: int = 160
    """Channels of the second convolution: the width of the LSTM's input."""
    stacking: int = 2
    """Frames of the first convolution that the second one moves on by (frame stacking)."""
    hidden: int = 160
    """LSTM units in each direction."""
    layers: int = 2
    """Stacked bidirectional LSTM layers."""
    dropout: float = 0.2
    """Probability of dropping a value between the layers and before the head."""

    def __post_init__(self) -> None:
        for field in ("channels", "stride", "stacking_channels", "stacking", "hidden", "layers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must lie in 0..1")


class Encoder(nn.Module):
    """Two convolutions over time that thin the frames out, then the stacked bidirectional LSTM.

    Args of forward:
        features: (batch, frames, n_features)
    Returns of forward:
        (batch, steps, 2 * hidden), steps = ((frames - 5) // stride + 1 - 3) // stacking + 1
    """

    def __init__(self, n_features: int, config: NetworkConfig, lstm: LSTMKind = "torch") -> None:
        super().__init__()
        self.normalize = nn.BatchNorm1d(n_features)
        self.thin = nn.Sequential(
            nn.Conv1d(n_features, config.channels, 5, config.stride, bias=False),
            nn.BatchNorm1d(config.channels),
            nn.ReLU(),
            nn.Dropout(config.dropout / 2),
            nn.Conv1d(config.channels, config.stacking_channels, 3, config.stacking, bias=False),
            nn.BatchNorm1d(config.stacking_channels),
            nn.ReLU(),
        )
        arguments = (config.stacking_channels, config.hidden, config.layers)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm: nn.Module
        if lstm == "equations":
            self.lstm = LSTM(*arguments, dropout=between, bidirectional=True)
        else:
            fast = nn.LSTM if lstm == "torch" else nn.RNN
            self.lstm = fast(*arguments, batch_first=True, dropout=between, bidirectional=True)
        self.dropout = nn.Dropout(config.dropout)
        for name, parameter in self.lstm.named_parameters():
            if "bias_ih" in name and lstm != "rnn":  # a forget gate that starts open lets gradients through time
                parameter.data[config.hidden : 2 * config.hidden] = 1.0

    @staticmethod
    def timing(config: NetworkConfig, hop_s: float, window_s: float) -> tuple[float, float]:
        """Distance of two steps and the middle of the first one, in seconds, for frames of `window_s` every `hop_s`."""
        middle = 2 + config.stride  # the kernels are five and three frames long
        return config.stride * config.stacking * hop_s, middle * hop_s + window_s / 2

    def forward(self, features: Tensor) -> Tensor:
        thinned = self.thin(self.normalize(features.transpose(1, 2)))  # (batch, stacking_channels, steps)
        hidden, _ = self.lstm(thinned.transpose(1, 2))
        return self.dropout(hidden)


class ClassificationHead(nn.Module):
    """Attention pooling over time, then one score for each class.

    Args of forward:
        hidden: (batch, steps, n_hidden)
    Returns of forward:
        logits (batch, classes), attention (batch, steps) that sums to one over the steps
    """

    def __init__(self, n_hidden: int, n_classes: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(n_hidden, 64), nn.Tanh(), nn.Linear(64, 1))
        self.classes = nn.Linear(n_hidden, n_classes)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.softmax(self.attention(hidden).squeeze(2), dim=1)
        pooled = (attention[:, None] @ hidden).squeeze(1)  # (batch, n_hidden)
        return self.classes(pooled), attention


class Classifier(nn.Module):
    """Encoder and classification head.

    Args of forward:
        features: (batch, frames, n_features)
    Returns of forward:
        logits (batch, classes)
    """

    def __init__(self, n_features: int, n_classes: int, config: NetworkConfig, lstm: LSTMKind = "torch") -> None:
        super().__init__()
        self.encoder = Encoder(n_features, config, lstm)
        self.head = ClassificationHead(2 * config.hidden, n_classes)

    def forward(self, features: Tensor) -> Tensor:
        logits, _ = self.head(self.encoder(features))
        return logits


class Transcriber(nn.Module):
    """Encoder and CTC head: at each step a posterior for every token.

    Args of forward:
        features: (batch, frames, n_features)
    Returns of forward:
        logits (batch, steps, tokens), steps as in `Encoder`; the last token is the blank
    """

    def __init__(self, n_features: int, n_tokens: int, config: NetworkConfig, lstm: LSTMKind = "torch") -> None:
        super().__init__()
        self.encoder = Encoder(n_features, config, lstm)
        self.head = nn.Linear(2 * config.hidden, n_tokens)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(features))
        return logits


Network = Classifier | Transcriber


def build_network(head: Head, n_features: int, n_scores: int, config: NetworkConfig, lstm: LSTMKind) -> Network:
    """The network of one head."""
    kind = Classifier if head == "classification" else Transcriber
    return kind(n_features, n_scores, config, lstm)


@torch.no_grad()
def fit_normalisation(network: nn.Module, features: Sequence[Tensor]) -> None:
    """Give every normalisation the mean and variance that its input has, without a change of what the network computes.

    Training normalises by its batches.  A network whose normalisations hold other figures, such as one from a bundle,
    where they are folded away, would compute something else as soon as it is trained on.

    Args:
        network: in evaluation mode.
        features: batches of (batch, frames, n_features).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    sums = {norm: [torch.zeros_like(norm.running_mean) for _ in range(2)] for norm in norms}  # type: ignore[arg-type]

    def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for total, power in zip(sums[norm], (1, 2), strict=True):  # type: ignore[index]
            total += inputs[0].pow(power).mean((0, 2)) / len(features)

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    for batch in features:
        network(batch)
    for hook in hooks:
        hook.remove()
    for norm, (mean, square) in sums.items():
        variance = (square - mean * mean).clamp(min=1e-8)
        state = norm.state_dict()  # the tensors themselves
        scale = state["weight"] / (state["running_var"] + norm.eps).sqrt()
        state["bias"] += scale * (mean - state["running_mean"])
        state["weight"].copy_(scale * (variance + norm.eps).sqrt())
        state["running_mean"].copy_(mean)
        state["running_var"].copy_(variance)
