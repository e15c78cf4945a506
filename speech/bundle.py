"""The bundle: the metadata of this project's ONNX files, and the meaning of the labels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech.errors import BundleError

FORMAT = 2
"""Version of the bundle format that this code reads and writes."""
MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = MODELS / "commands.onnx"
UNKNOWN, SILENCE, BLANK = "_unknown_", "_silence_", "_blank_"
"""Labels that are not words: other speech, no speech, and a CTC step without a new token."""
HEADS = {"classification": (UNKNOWN, SILENCE), "ctc": (UNKNOWN, BLANK)}
"""What the scores mean: posteriors of one word for each utterance, or CTC posteriors of tokens for each step; and the
labels that a bundle of the kind needs in addition to its words."""
LONGEST_S = 60.0
"""Largest `window_s` and `offset_s` of a bundle; no network was trained on longer waveforms."""

_PREFIX = "speech."
_LATER = ("thresholds", "step_s", "offset_s")  # fields that a bundle may lack


def bundle_path(model: str | Path | None) -> Path:
    """The file of a model: a path, or the name of a shipped one (`commands`, `connected`); default: `commands`.

    Raises:
        BundleError: there is no such file.
    """
    path = DEFAULT_MODEL if model is None else Path(model)
    shipped = MODELS / f"{path}.onnx"
    if not path.is_file() and path.name == str(path) and shipped.is_file():
        return shipped
    if not path.is_file():
        raise BundleError(f"no model at {path}")
    return path


def _check(is_right: bool, fault: str) -> None:
    if not is_right:
        raise BundleError(f"bundle with {fault}")


@dataclass(frozen=True)
class BundleInfo:
    """The metadata of a bundle."""

    format: int
    """Version of the bundle format."""
    head: str
    """One of `HEADS`."""
    labels: tuple[str, ...]
    """The classes, in the order of the scores."""
    sample_rate_hz: int
    """Sample rate of the graph's input."""
    window_s: float
    """Length of the training waveforms."""
    threshold: float
    """Lowest confidence at which the live loop reports a word."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the MFCC inside the graph."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on, and how."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured with it."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Thresholds of single words; they override `threshold`."""
    step_s: float = 0.0
    """`ctc`: distance between two steps."""
    offset_s: float = 0.0
    """`ctc`: centre of the first step, without the context that the LSTM adds."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise BundleError(
                f"bundle format {self.format}, but this version reads format {FORMAT}: use the version of this package "
                "that it was made with, a shipped bundle, or export its checkpoint again"
            )
        texts = all(isinstance(label, str) and label for label in self.labels)
        is_distinct = texts and len(set(self.labels)) == len(self.labels)
        _check(is_distinct, f"labels {list(self.labels)}; expected distinct texts")
        _check(self.head in HEADS, f"head {self.head!r}; this version supports {', '.join(HEADS)}")
        missing = [label for label in HEADS[self.head] if label not in self.labels]
        _check(not missing, f"labels {list(self.labels)}, without {', '.join(missing)}")
        _check(bool(self.words), "no words among its labels")
        for name in ("features", "training", "figures", "thresholds"):
            _check(isinstance(getattr(self, name), Mapping), f"{name}={getattr(self, name)!r}; expected a table")
        is_usual = self.sample_rate_hz > 0 and self.window_s <= LONGEST_S and self.window > 0
        _check(is_usual and 0 < self.threshold <= 1, "a sample rate, window or threshold out of range")
        _check(0 <= self.offset_s <= LONGEST_S, f"offset_s={self.offset_s}")
        _check(not self.has_steps or 0 < self.step_s <= self.window_s, f"head 'ctc' and step_s={self.step_s}")
        strange = sorted(set(self.thresholds) - set(self.words))
        _check(not strange, f"thresholds of words it lacks: {', '.join(strange)}")
        within = all(0 < value <= 1 for value in self.thresholds.values())
        _check(within, f"thresholds out of range: {dict(self.thresholds)}")

    @property
    def has_steps(self) -> bool:
        """Whether the bundle recognises sequences: one row of scores for each step, not for the utterance."""
        return self.head == "ctc"

    @property
    def words(self) -> tuple[str, ...]:
        """The labels that are words, which do not begin with `_`."""
        return tuple(label for label in self.labels if not label.startswith("_"))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels as `Recognizer.classify` names them: `_silence_` for blank."""
        return tuple(SILENCE if label == BLANK else label for label in self.labels)

    @property
    def window(self) -> int:
        """Window in samples."""
        return round(self.window_s * self.sample_rate_hz)

    @property
    def key(self) -> str:
        """A short hash of the metadata: whether settings were made for this bundle."""
        return hashlib.sha256(json.dumps(self.as_metadata(), sort_keys=True).encode()).hexdigest()[:12]

    def as_metadata(self) -> dict[str, str]:
        """The ONNX metadata: each field as JSON under the key `speech.<field>`."""
        return {f"{_PREFIX}{name}": json.dumps(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "BundleInfo":
        """Read the ONNX metadata.  Raises BundleError if a field is missing or malformed."""
        values = {}
        for name in cls.__dataclass_fields__:
            if _PREFIX + name not in metadata:
                if name in _LATER:
                    continue
                raise BundleError(f"not a speech bundle: the metadata field {_PREFIX}{name} is missing")
            try:
                values[name] = json.loads(metadata[_PREFIX + name])
            except ValueError as error:
                raise BundleError(f"damaged bundle: {_PREFIX}{name} is not JSON") from error
        try:
            return cls(**{**values, "labels": tuple(values["labels"])})
        except (TypeError, AttributeError) as error:  # a value of the wrong type
            raise BundleError(f"damaged bundle: {error}") from error
