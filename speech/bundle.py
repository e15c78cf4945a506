"""The bundle: what an ONNX file of this project holds, and what its labels mean."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech.errors import BundleError

FORMAT = 2
"""Version of the bundle's layout that this code reads and writes."""
MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = MODELS / "commands.onnx"
UNKNOWN, SILENCE, BLANK = "_unknown_", "_silence_", "_blank_"
"""Labels that are no words: other speech, no speech, and nothing new in this step of a CTC head."""
LONGEST_S = 60.0
"""No network was trained on longer waveforms."""

_PREFIX = "speech."
_LATER = ("thresholds", "step_s", "offset_s")  # fields that a bundle may lack


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle's metadata says."""

    format: int
    """Version of this layout."""
    head: str
    """What the scores mean: the name of one of `speech.heads.HEADS`."""
    labels: tuple[str, ...]
    """The classes, in the order of the scores."""
    sample_rate_hz: int
    """Rate of the waveform that the graph takes."""
    window_s: float
    """Length of the waveform that it was trained on."""
    threshold: float
    """Smoothed posterior from which the live loop reports a word."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the MFCC inside the graph, for the reader."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on, and how."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured with it."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """The same as `threshold` for single words."""
    step_s: float = 0.0
    """`ctc`: distance of two steps."""
    offset_s: float = 0.0
    """`ctc`: the middle of what the first step sees directly."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise BundleError(
                f"bundle format {self.format}, but this version reads format {FORMAT}: use the version of this package "
                "that it was made with, a shipped bundle, or export its checkpoint again"
            )
        if not all(isinstance(label, str) and label for label in self.labels):
            raise BundleError(f"bundle labels {list(self.labels)} must be text")
        if len(set(self.labels)) != len(self.labels):
            raise BundleError(f"bundle labels {list(self.labels)} must be distinct")
        if not self.words:
            raise BundleError("bundle without words")
        for name in ("features", "training", "figures", "thresholds"):
            if not isinstance(getattr(self, name), Mapping):
                raise BundleError(f"bundle with {name}={getattr(self, name)!r}; expected a table")
        if not (self.sample_rate_hz > 0 and 0 < self.window_s <= LONGEST_S and 0 < self.threshold <= 1):
            raise BundleError("bundle with a sample rate, window or threshold out of range")
        if not 0 <= self.offset_s <= LONGEST_S:
            raise BundleError(f"bundle with offset_s={self.offset_s}")
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        strange = set(self.thresholds) - set(self.words)
        if strange:
            raise BundleError(f"bundle with thresholds of words it lacks: {', '.join(sorted(strange))}")
        if any(not 0 < value <= 1 for value in self.thresholds.values()):
            raise BundleError(f"bundle with thresholds out of range: {dict(self.thresholds)}")

    @property
    def words(self) -> tuple[str, ...]:
        """The labels that are words: those that do not begin with `_`."""
        return tuple(label for label in self.labels if not label.startswith("_"))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels as `Recognizer.classify` names them: a recording that is nothing but blank is `_silence_`."""
        return tuple(SILENCE if label == BLANK else label for label in self.labels)

    @property
    def window(self) -> int:
        """Window in samples."""
        return round(self.window_s * self.sample_rate_hz)

    def as_metadata(self) -> dict[str, str]:
        """The ONNX metadata: one JSON value under `speech.<field>` for each field."""
        return {f"{_PREFIX}{name}": json.dumps(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "BundleInfo":
        """Raises BundleError when a field is missing or malformed."""
        values = {}
        for name in cls.__dataclass_fields__:
            if _PREFIX + name not in metadata:
                if name in _LATER:
                    continue
                raise BundleError(f"not a speech bundle: the metadata field {_PREFIX}{name} is missing")
            try:
                values[name] = json.loads(metadata[_PREFIX + name])
            except ValueError as error:
                raise BundleError(f"damaged bundle: {_PREFIX}{name} is no JSON") from error
        try:
            return cls(**{**values, "labels": tuple(values["labels"])})
        except (TypeError, AttributeError) as error:  # a value of another kind
            raise BundleError(f"damaged bundle: {error}") from error
