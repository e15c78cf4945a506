"""The encoder (convolutions, stacked bidirectional LSTM) and the heads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torchaudio.functional import create_dct

from speech.errors import ConfigError
from speech.model.features import HOP, N_MELS, N_MFCC, WINDOW
from speech.model.lstm import LSTM
from speech.segment import SAMPLE_RATE_HZ

LSTMKind = Literal["torch", "equations", "rnn"]
"""The fast LSTM; the one written out from its equations, with the same weights; a plain RNN for comparison."""


DEVIATION_FLOOR = 1.0
"""Its square is added to the variance over time.  In MFCC, white noise deviates by 0.5 to 1, a word by 0.7 to 20."""
ATTENTION_UNITS = 64
"""Width of the layer that scores each step for the attention."""
WORD_SCALE = 16.0
"""Initial factor of the cosines in the training-only layer; it is learned.  Source: Wang et al. 2017, NormFace."""
STRIDE = 4
"""Frames of the MFCC for one step of the LSTM."""


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the network."""

    channels: tuple[int, int, int] = (24, 48, 64)
    """Channels of the first convolution over time and frequency and of the two pairs of blocks after it."""
    width: int = 192
    """Size of the LSTM's input."""
    hidden: int = 160
    """LSTM units in each direction."""
    layers: int = 2
    """Stacked bidirectional LSTM layers."""
    dropout: float = 0.2
    """Probability of dropping a value between the layers and before the head."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # a checkpoint and a config have a list
        if len(self.channels) != 3 or min(*self.channels, self.width, self.hidden, self.layers) < 1:
            raise ConfigError(f"channels={self.channels} must be three sizes; these and all other sizes at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must lie in 0..1")


class UtteranceNorm(nn.Module):
    """Subtracts each coefficient's mean over the utterance and divides by its deviation.

    Args of forward:
        features: (batch, frames, N_MFCC), each item one whole utterance
    Returns of forward:
        the same shape; the deviation is sqrt(variance + DEVIATION_FLOOR ** 2)

    Source: Furui 1981 (the mean); Viikki and Laurila 1998 (the deviation).
    """

    def forward(self, features: Tensor) -> Tensor:
        change = features - features[:, :1]  # digital silence becomes exactly 0, without rounding errors
        centred = change - change.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred / (variance + DEVIATION_FLOOR**2).sqrt()


class SeparableBlock(nn.Module):
    """A convolution over time and frequency in each channel, then one across the channels; residual where it fits.

    Args of forward:
        x: (batch, inputs, frames, bands)
    Returns of forward:
        (batch, outputs, frames / stride[0], bands / stride[1]), rounded up

    Source: Howard et al. 2017, MobileNets; He et al. 2015 (the residual).
    """

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.is_residual = inputs == outputs and stride == (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.change(x)
        return torch.relu(x + changed if self.is_residual else changed)


class Encoder(nn.Module):
    """Convolutions over time and frequency, then the stacked bidirectional LSTM.

    The transposed DCT turns the normalised MFCC back into a smoothed log-mel picture.  In it a shifted formant is a
    shifted pattern, which convolutions follow; in MFCC it changes all coefficients.

    Args of forward:
        features: (batch, frames, N_MFCC), each item one whole utterance
    Returns of forward:
        (batch, steps, 2 * hidden), steps = frames / STRIDE, rounded up
    """

    dct: Tensor

    def __init__(self, config: NetworkConfig, lstm: LSTMKind = "torch") -> None:
        super().__init__()
        self.norm = UtteranceNorm()
        self.register_buffer("dct", create_dct(N_MFCC, N_MELS, norm="ortho").T.contiguous(), persistent=False)
        first, second, third = config.channels
        self.look = nn.Sequential(
            nn.Conv2d(1, first, 5, 2, 2, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            SeparableBlock(first, second, (1, 2)),
            SeparableBlock(second, second, (1, 1)),
            SeparableBlock(second, third, (2, 2)),
            SeparableBlock(third, third, (1, 1)),
        )
        self.join = nn.Sequential(
            nn.Conv1d(third * N_MELS // 8, config.width, 1, bias=False),
            nn.BatchNorm1d(config.width),
            nn.ReLU(),
            nn.Dropout(config.dropout / 2),
        )
        between = config.dropout if config.layers > 1 else 0.0
        kind = {"torch": nn.LSTM, "equations": LSTM, "rnn": nn.RNN}[lstm]
        options = {"bidirectional": True} if lstm == "equations" else {"bidirectional": True, "batch_first": True}
        self.lstm: nn.Module = kind(config.width, config.hidden, config.layers, dropout=between, **options)
        self.dropout = nn.Dropout(config.dropout)
        for name, parameter in self.lstm.named_parameters():
            if "bias_ih" in name and lstm != "rnn":  # an open forget gate lets gradients flow back in time
                parameter.data[config.hidden : 2 * config.hidden] = 1.0

    @staticmethod
    def timing() -> tuple[float, float]:
        """Distance between steps and centre of the first, in seconds: frames 0, 4, 8, ... are the centres."""
        return STRIDE * HOP / SAMPLE_RATE_HZ, WINDOW / 2 / SAMPLE_RATE_HZ

    def steps(self, features: Tensor) -> Tensor:
        """The LSTM's input: (batch, frames, N_MFCC) -> (batch, steps, width)."""
        picture = (self.norm(features) @ self.dct)[:, None]  # (batch, 1, frames, N_MELS)
        seen = self.look(picture).transpose(2, 3)  # (batch, third, N_MELS / 8, steps)
        joined: Tensor = self.join(seen.flatten(1, 2))
        return joined.transpose(1, 2)

    def forward(self, features: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.steps(features))
        return self.dropout(hidden)


class AttentionPooling(nn.Module):
    """Weighted mean over time.

    Args of forward:
        hidden: (batch, steps, n_hidden)
    Returns of forward:
        pooled (batch, n_hidden);
        attention (batch, 1, steps); the weights sum to one over the steps

    Source: Lin et al. 2017, A Structured Self-attentive Sentence Embedding.
    """

    def __init__(self, n_hidden: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(n_hidden, ATTENTION_UNITS), nn.Tanh(), nn.Linear(ATTENTION_UNITS, 1))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.softmax(self.score(hidden), dim=1).transpose(1, 2)  # (batch, 1, steps)
        return (attention @ hidden).flatten(1), attention


class CosineLayer(nn.Module):
    """Scaled cosines between an embedding and one vector for each word.

    Args of forward:
        embedding: (batch, n)
    Returns of forward:
        logits (batch, n_words), within -scale..scale
    """

    def __init__(self, n: int, n_words: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_words, n))
        self.log_scale = nn.Parameter(torch.tensor(WORD_SCALE).log())

    def forward(self, embedding: Tensor) -> Tensor:
        cosine = nn.functional.normalize(embedding, dim=1) @ nn.functional.normalize(self.weight, dim=1).T
        return self.log_scale.exp() * cosine


class Network(nn.Module, ABC):
    """Encoder and head: features in, logits out.

    The network of a new head derives from this class and is entered in `NETWORKS`.
    """

    name: ClassVar[str]
    """Name of the head, as in `speech.bundle.HEADS`."""
    window_s: ClassVar[float]
    """Length of the training waveforms, in seconds."""
    axes: ClassVar[Mapping[str, Mapping[int, str]]]
    """Axes of variable length, for each output."""
    encoder: "Encoder"

    @abstractmethod
    def __init__(self, n_scores: int, config: NetworkConfig, lstm: LSTMKind = "torch", n_words: int = 0) -> None:
        super().__init__()

    @abstractmethod
    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """Outputs for features (batch, frames, N_MFCC), named as in `axes`; `scores` are logits."""

    def forward(self, features: Tensor) -> Tensor:
        return self.outputs(features)["scores"]


class Classifier(Network):
    """Encoder, attention pooling and one score for each class.

    Args:
        n_words: outputs of a second, training-only layer that separates words by the direction of their embedding, so
            that words outside the classes are separated from each other too; 0 for no such layer.
    Args of forward:
        features: (batch, frames, N_MFCC), each item one whole utterance
    Returns of forward:
        logits (batch, classes)
    """

    name, window_s = "classification", 1.0
    axes: ClassVar = {"scores": {0: "batch"}, "embedding": {0: "batch"}, "attention": {0: "batch", 2: "steps"}}

    def __init__(self, n_scores: int, config: NetworkConfig, lstm: LSTMKind = "torch", n_words: int = 0) -> None:
        super().__init__(n_scores, config, lstm, n_words)
        self.config = config
        self.encoder = Encoder(config, lstm)
        self.pool = AttentionPooling(2 * config.hidden)
        self.classes = nn.Linear(2 * config.hidden, n_scores)
        self.words = CosineLayer(2 * config.hidden, n_words) if n_words else None

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes) and those of the training-only layer (batch, n_words), in one pass."""
        if self.words is None:
            raise ConfigError("the network was built without n_words, so it has no layer for them")
        embedding, _ = self.pool(self.encoder(features))
        return self.classes(embedding), self.words(embedding)

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """`scores`, the `embedding` (batch, 2 * hidden) and the `attention` (batch, 1, steps)."""
        embedding, attention = self.pool(self.encoder(features))
        return {"scores": self.classes(embedding), "embedding": embedding, "attention": attention}


class Transcriber(Network):
    """Encoder and CTC head: logits of every token at each step.

    Args:
        n_words: has no effect.
    Args of forward:
        features: (batch, frames, N_MFCC)
    Returns of forward:
        logits (batch, steps, tokens), steps as in `Encoder`; the last token is the blank
    """

    name, window_s = "ctc", 3.0
    axes: ClassVar = {"scores": {0: "batch", 1: "steps"}}

    def __init__(self, n_scores: int, config: NetworkConfig, lstm: LSTMKind = "torch", n_words: int = 0) -> None:
        super().__init__(n_scores, config, lstm, n_words)
        self.config = config
        self.encoder = Encoder(config, lstm)
        self.head = nn.Linear(2 * config.hidden, n_scores)

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.encoder(features))}


NETWORKS: Mapping[str, type[Network]] = {network.name: network for network in (Classifier, Transcriber)}
"""The network of each head."""
