"""The encoder (convolutions, stacked bidirectional LSTM) and the heads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from speech.errors import ConfigError
from speech.model.lstm import LSTM

LSTMKind = Literal["torch", "equations", "rnn"]
"""The fast LSTM; the one written out from its equations, with the same weights; a plain RNN for comparison."""


Normalisation = Literal["none", "mean", "mean_variance"]
"""How the MFCC of each utterance are normalised: not at all, by the mean over time, by mean and deviation."""

DEVIATION_FLOOR = 1.0
"""Its square is added to the variance over time.  In MFCC, white noise deviates by 0.5 to 1, a word by 0.7 to 20."""
ATTENTION_UNITS = 64
"""Width of the layer that scores each step for the attention."""
WORD_SCALE = 16.0
"""Initial factor of the cosines in the training-only layer; it is learned.  Source: Wang et al. 2017, NormFace."""


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the encoder and of the pooling."""

    cmn: Normalisation = "mean"
    """Cepstral mean (and variance) normalisation of each utterance: it removes the colouring by the microphone."""
    channels: int = 128
    """Channels of the first convolution over time; its input is the MFCC."""
    stride: int = 2
    """Stride of the first convolution, in frames."""
    stacking_channels: int = 160
    """Channels of the second convolution, and size of the LSTM's input."""
    stacking: int = 2
    """Stride of the second convolution, in outputs of the first (frame stacking)."""
    blocks: int = 0
    """Residual blocks of separable convolutions over time between the second convolution and the LSTM."""
    block_kernel: int = 9
    """Kernel length of each block, in steps; odd."""
    hidden: int = 160
    """LSTM units in each direction."""
    layers: int = 2
    """Stacked bidirectional LSTM layers."""
    attention_heads: int = 1
    """Attention distributions over time in the classifier; their weighted means are concatenated."""
    embedding: int = 0
    """Output size of a linear layer after the pooling; 0 for no such layer."""
    dropout: float = 0.2
    """Probability of dropping a value between the layers and before the head."""

    def __post_init__(self) -> None:
        if self.cmn not in get_args(Normalisation):
            raise ConfigError(f"cmn={self.cmn} must be one of {', '.join(get_args(Normalisation))}")
        sizes = ("channels", "stride", "stacking_channels", "stacking", "hidden", "layers", "attention_heads")
        for field in sizes:
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")
        for field in ("blocks", "embedding"):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field}={getattr(self, field)} must not be negative")
        if self.block_kernel < 1 or self.block_kernel % 2 == 0:
            raise ConfigError(f"block_kernel={self.block_kernel} must be odd and positive")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must lie in 0..1")

    @property
    def n_pooled(self) -> int:
        """Length of the class layer's input, which a bundle outputs as `embedding`."""
        return self.embedding or self.attention_heads * 2 * self.hidden


class UtteranceNorm(nn.Module):
    """Subtracts each coefficient's mean over the utterance and, for `mean_variance`, divides by its deviation.

    Args of forward:
        features: (batch, frames, n_features), each item one whole utterance
    Returns of forward:
        the same shape; the deviation is sqrt(variance + DEVIATION_FLOOR ** 2)

    Source: Furui 1981 (the mean); Viikki and Laurila 1998 (the deviation).
    """

    def __init__(self, kind: Normalisation) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "none":
            return features
        change = features - features[:, :1]  # digital silence becomes exactly 0, without rounding errors
        centred = change - change.mean(1, keepdim=True)
        if self.kind == "mean":
            return centred
        variance = (centred * centred).mean(1, keepdim=True)
        return centred / (variance + DEVIATION_FLOOR**2).sqrt()


class SeparableBlock(nn.Module):
    """A residual block: a convolution over time in each channel, then one across the channels at each step.

    Args of forward:
        x: (batch, channels, steps)
    Returns of forward:
        the same shape; the utterance is padded with zeros

    Source: Majumdar and Ginsburg 2020, MatchboxNet.
    """

    def __init__(self, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
            nn.Conv1d(channels, channels, 1, bias=False),
            nn.BatchNorm1d(channels),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.dropout(torch.relu(x + self.change(x)))
        return kept


class Encoder(nn.Module):
    """Convolutions over time that reduce the frame rate, then the stacked bidirectional LSTM.

    Args of forward:
        features: (batch, frames, n_features), each item one whole utterance
    Returns of forward:
        (batch, steps, 2 * hidden), steps = ((frames - 5) // stride + 1 - 3) // stacking + 1
    """

    def __init__(self, n_features: int, config: NetworkConfig, lstm: LSTMKind = "torch") -> None:
        super().__init__()
        self.cmn = UtteranceNorm(config.cmn)
        self.normalize = nn.BatchNorm1d(n_features)
        width = config.stacking_channels
        self.thin = nn.Sequential(
            nn.Conv1d(n_features, config.channels, 5, config.stride, bias=False),
            nn.BatchNorm1d(config.channels),
            nn.ReLU(),
            nn.Dropout(config.dropout / 2),
            nn.Conv1d(config.channels, width, 3, config.stacking, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        blocks = [SeparableBlock(width, config.block_kernel, config.dropout / 2) for _ in range(config.blocks)]
        self.blocks = nn.Sequential(*blocks)
        between = config.dropout if config.layers > 1 else 0.0
        kind = {"torch": nn.LSTM, "equations": LSTM, "rnn": nn.RNN}[lstm]
        options = {"bidirectional": True} if lstm == "equations" else {"bidirectional": True, "batch_first": True}
        self.lstm: nn.Module = kind(width, config.hidden, config.layers, dropout=between, **options)
        self.dropout = nn.Dropout(config.dropout)
        for name, parameter in self.lstm.named_parameters():
            if "bias_ih" in name and lstm != "rnn":  # an open forget gate lets gradients flow back in time
                parameter.data[config.hidden : 2 * config.hidden] = 1.0

    @staticmethod
    def timing(config: NetworkConfig, hop_s: float, window_s: float) -> tuple[float, float]:
        """Distance between steps and centre of the first, in seconds, for frames of `window_s` every `hop_s`."""
        middle = 2 + config.stride  # the kernels have lengths 5 and 3; the blocks are centred
        return config.stride * config.stacking * hop_s, middle * hop_s + window_s / 2

    def steps(self, features: Tensor) -> Tensor:
        """The LSTM's input: (batch, frames, n_features) -> (batch, steps, stacking_channels)."""
        normalised = self.normalize(self.cmn(features).transpose(1, 2))  # (batch, n_features, frames)
        thinned: Tensor = self.blocks(self.thin(normalised))
        return thinned.transpose(1, 2)

    def forward(self, features: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.steps(features))
        return self.dropout(hidden)


class AttentionPooling(nn.Module):
    """Weighted means over time.

    Args of forward:
        hidden: (batch, steps, n_hidden)
    Returns of forward:
        pooled (batch, heads * n_hidden), one head after the other;
        attention (batch, heads, steps); each head's weights sum to one over the steps

    Source: Lin et al. 2017, A Structured Self-attentive Sentence Embedding.
    """

    def __init__(self, n_hidden: int, heads: int = 1) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(n_hidden, ATTENTION_UNITS), nn.Tanh(), nn.Linear(ATTENTION_UNITS, heads))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.softmax(self.score(hidden), dim=1).transpose(1, 2)  # (batch, heads, steps)
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
    """Name of the head, as in `speech.heads`."""
    window_s: ClassVar[float]
    """Length of the training waveforms, in seconds."""
    axes: ClassVar[Mapping[str, Mapping[int, str]]]
    """Axes of variable length, for each output."""
    encoder: "Encoder"

    @abstractmethod
    def __init__(
        self, n_features: int, n_scores: int, config: NetworkConfig, lstm: LSTMKind = "torch", n_words: int = 0
    ) -> None:
        super().__init__()

    @abstractmethod
    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """Outputs for features (batch, frames, n_features), named as in `axes`; `scores` are logits."""

    def forward(self, features: Tensor) -> Tensor:
        return self.outputs(features)["scores"]


class Classifier(Network):
    """Encoder, attention pooling and one score for each class.

    Args:
        n_words: outputs of a second, training-only layer that separates words by the direction of their embedding, so
            that words outside the classes are separated from each other too; 0 for no such layer.
    Args of forward:
        features: (batch, frames, n_features), each item one whole utterance
    Returns of forward:
        logits (batch, classes)
    """

    name, window_s = "classification", 1.0
    axes: ClassVar = {"scores": {0: "batch"}, "embedding": {0: "batch"}, "attention": {0: "batch", 2: "steps"}}

    def __init__(
        self, n_features: int, n_scores: int, config: NetworkConfig, lstm: LSTMKind = "torch", n_words: int = 0
    ) -> None:
        super().__init__(n_features, n_scores, config, lstm, n_words)
        self.config = config
        self.encoder = Encoder(n_features, config, lstm)
        self.pool = AttentionPooling(2 * config.hidden, config.attention_heads)
        pooled = config.attention_heads * 2 * config.hidden
        self.project = nn.Linear(pooled, config.embedding) if config.embedding else nn.Identity()
        self.classes = nn.Linear(config.n_pooled, n_scores)
        self.words = CosineLayer(config.n_pooled, n_words) if n_words else None

    def pooled(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The class layer's input, the embedding (batch, n_pooled), and the attention (batch, heads, steps)."""
        pooled, attention = self.pool(self.encoder(features))
        return self.project(pooled), attention

    def embedding(self, features: Tensor) -> Tensor:
        """The class layer's input: (batch, n_pooled)."""
        return self.pooled(features)[0]

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes) and those of the training-only layer (batch, n_words), in one pass."""
        if self.words is None:
            raise ConfigError("the network was built without n_words, so it has no layer for them")
        embedding = self.embedding(features)
        return self.classes(embedding), self.words(embedding)

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """`scores`, the `embedding` (batch, n_pooled) and the `attention` (batch, heads, steps)."""
        embedding, attention = self.pooled(features)
        return {"scores": self.classes(embedding), "embedding": embedding, "attention": attention}


class Transcriber(Network):
    """Encoder and CTC head: logits of every token at each step.

    Args:
        n_words: has no effect.
    Args of forward:
        features: (batch, frames, n_features)
    Returns of forward:
        logits (batch, steps, tokens), steps as in `Encoder`; the last token is the blank
    """

    name, window_s = "ctc", 3.0
    axes: ClassVar = {"scores": {0: "batch", 1: "steps"}}

    def __init__(
        self, n_features: int, n_scores: int, config: NetworkConfig, lstm: LSTMKind = "torch", n_words: int = 0
    ) -> None:
        super().__init__(n_features, n_scores, config, lstm, n_words)
        self.config = config
        self.encoder = Encoder(n_features, config, lstm)
        self.head = nn.Linear(2 * config.hidden, n_scores)

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.encoder(features))}


NETWORKS: Mapping[str, type[Network]] = {network.name: network for network in (Classifier, Transcriber)}
"""The network of each head."""
