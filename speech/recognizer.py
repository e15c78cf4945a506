"""The bundle: waveform in, scores out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from speech.audio import as_mono, resample
from speech.ctc import BLANK, FILLER, beam_search, confidences
from speech.decoding import most_confident
from speech.errors import BundleError
from speech.grammar import Grammar, NGram

FORMAT = 1
"""Version of the bundle's metadata that this code reads and writes."""
MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = MODELS / "commands.onnx"
UNKNOWN, SILENCE = FILLER, "_silence_"
HEADS = {"classification": (UNKNOWN, SILENCE), "ctc": (UNKNOWN, BLANK)}
"""What scores may mean, and the labels that are no words."""

_PREFIX = "speech."
_LATER = ("thresholds", "step_s", "offset_s")  # fields that older bundles lack


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle's metadata says."""

    format: int
    """Version of this layout."""
    head: str
    """What the scores mean: `classification`, one row of posteriors for each waveform, or `ctc`, one for each step."""
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
            raise BundleError(f"bundle format {self.format}, but this version reads format {FORMAT}")
        if self.head not in HEADS:
            raise BundleError(f"bundle with head {self.head!r}, but this version plays {', '.join(HEADS)}")
        needed = HEADS[self.head]
        if not set(needed) <= set(self.labels) or len(set(self.labels)) != len(self.labels):
            raise BundleError(f"bundle labels {list(self.labels)} must be distinct and hold {' and '.join(needed)}")
        if self.head == "ctc" and not self.step_s > 0:
            raise BundleError(f"bundle with head 'ctc' and step_s={self.step_s}")
        strange = set(self.thresholds) - set(self.words)
        if strange:
            raise BundleError(f"bundle with thresholds of words it lacks: {', '.join(sorted(strange))}")
        if any(not 0 < value <= 1 for value in self.thresholds.values()):
            raise BundleError(f"bundle with thresholds out of range: {dict(self.thresholds)}")
        if self.sample_rate_hz <= 0 or self.window_s <= 0 or not 0 < self.threshold <= 1:
            raise BundleError("bundle with a sample rate, window or threshold out of range")

    @property
    def words(self) -> tuple[str, ...]:
        """The labels that are words."""
        return tuple(label for label in self.labels if label not in HEADS[self.head])

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
        except TypeError as error:
            raise BundleError(f"damaged bundle: {error}") from error


@dataclass(frozen=True)
class Prediction:
    """What one recording holds."""

    word: str
    """The best label; may be `_unknown_` or `_silence_`."""
    confidence: float
    """Its posterior, 0..1."""
    scores: dict[str, float]
    """The posterior of every label; they sum to one."""


@dataclass(frozen=True)
class SpokenWord:
    """A word of a sequence."""

    word: str
    start_s: float
    """Where its token begins, in seconds; the sound may reach further to both sides."""
    end_s: float
    """Where its token ends."""
    confidence: float
    """How much better the word explains what is there than everything else, see `ctc.confidences`; 0..1."""


class Recognizer:
    """A loaded bundle; `Recognizer.load()` makes one."""

    def __init__(self, session: onnxruntime.InferenceSession, info: BundleInfo) -> None:
        self._session, self.info = session, info

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Recognizer":
        """Open a bundle on one CPU thread.

        Args:
            path: an `.onnx` bundle, or the name of a shipped one (`commands`); default: the shipped one.
        Raises:
            BundleError: when it is missing, no ONNX file, or no bundle of this format.
        """
        path = DEFAULT_MODEL if path is None else Path(path)
        shipped = MODELS / f"{path}.onnx"
        if not path.is_file() and path.name == str(path) and shipped.is_file():
            path = shipped
        if not path.is_file():
            raise BundleError(f"no model at {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise BundleError(f"{path} is not an ONNX model that can be opened") from error
        try:
            info = BundleInfo.from_metadata(session.get_modelmeta().custom_metadata_map)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if [i.name for i in inputs] != ["waveform"] or not outputs or outputs[0].shape[-1] != len(info.labels):
            raise BundleError(f"{path}: the graph must map `waveform` to {len(info.labels)} scores")
        return cls(session, info)

    def scores(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Posteriors of windows.

        Args:
            waveforms: (batch, time) float32 in -1..1 at `info.sample_rate_hz`; time >= 0.2 s.
        Returns:
            (batch, labels), or (batch, steps, labels) from a CTC head; each row sums to one.
        """
        scores: NDArray[np.float32] = self._session.run(["scores"], {"waveform": waveforms})[0]
        return scores

    def classify(self, waveform: NDArray[Any] | Sequence[float], sample_rate: int) -> Prediction:
        """Name the word in a recording.

        A recording shorter than the window is centred in silence; of a longer one the window with the most
        confident word counts.

        Args:
            waveform: (time,) or (time, channels); float in -1..1 or 16/32-bit integers.
            sample_rate: in Hz.
        Raises:
            AudioError: when it is empty or holds NaN or infinity.
        """
        mono = resample(as_mono(np.asarray(waveform)), sample_rate, self.info.sample_rate_hz)
        windows = self._windows(mono)
        posteriors = most_confident(self._single(self.scores(windows)), self._is_word)
        best = int(posteriors.argmax())
        scores = dict(zip(self.info.classes, posteriors.tolist(), strict=True))
        return Prediction(self.info.classes[best], float(posteriors[best]), scores)

    def _single(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(windows, labels): the probability that a window holds just this."""
        if self.info.head == "classification":
            return scores
        blank = self.info.labels.index(BLANK)
        return np.stack([confidences(log_of(steps), blank) for steps in scores]).astype(np.float32)

    def transcribe(
        self,
        waveform: NDArray[Any] | Sequence[float],
        sample_rate: int,
        grammar: Grammar | None = None,
        language_model: NGram | None = None,
        threshold: float | None = None,
    ) -> list[SpokenWord]:
        """Name the words in a recording of any length, in their order; needs a bundle with a CTC head.

        Args:
            waveform: (time,) or (time, channels); float in -1..1 or 16/32-bit integers.
            sample_rate: in Hz.
            grammar: only its sentences may be said.
            language_model: which words tend to follow one another.
            threshold: confidence below which a word is dropped, 0..1; default: the bundle's.
        Raises:
            AudioError: when it is empty or holds NaN or infinity.
            BundleError: for a bundle of another head.
        """
        info = self.info
        if info.head != "ctc":
            raise BundleError(f"a bundle with head {info.head!r} names single words; sequences need head 'ctc'")
        mono = resample(as_mono(np.asarray(waveform)), sample_rate, info.sample_rate_hz)
        threshold = info.threshold if threshold is None else threshold
        log_probs = log_of(self._steps(mono))
        spans = beam_search(log_probs, info.labels, grammar=grammar, language_model=language_model, threshold=threshold)
        spoken = [span for span in spans if span.label != UNKNOWN]
        return [SpokenWord(s.label, self._time_s(s.start), self._time_s(s.end), s.confidence) for s in spoken]

    def _time_s(self, step: int) -> float:
        """Where a step of a CTC head begins."""
        return max(0.0, self.info.offset_s + (step - 0.5) * self.info.step_s)

    def _steps(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """(steps, labels) of a recording, seen through overlapping windows of which the middle counts.

        The network learnt on a few seconds; one pass over minutes would show it what it never met.
        """
        step, window = round(self.info.step_s * self.info.sample_rate_hz), 2 * self.info.window
        mono = np.pad(mono, (0, max(0, self.info.sample_rate_hz - len(mono))))
        margin = window // 4 // step  # steps that only give context
        hop = window - 2 * margin * step
        scores = [self.scores(mono[begin : begin + window][None])[0] for begin in range(0, len(mono) - hop // 2, hop)]
        if len(scores) < 2:
            return self.scores(mono[None])[0]
        kept = hop // step
        inner = [part[margin : margin + kept] for part in scores[1:-1]]
        return np.concatenate([scores[0][: margin + kept], *inner, scores[-1][margin:]])

    @property
    def _is_word(self) -> NDArray[np.bool_]:
        return np.array([label in self.info.words for label in self.info.labels])

    def _windows(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """(windows, window): the recording centred in one window, or one every tenth of a window."""
        window = self.info.window
        if self.info.head == "ctc":  # it takes any length
            window = min(window, max(len(mono), self.info.sample_rate_hz))
        spare = window - len(mono)
        if spare >= 0:
            return np.pad(mono, (spare // 2, spare - spare // 2))[None]
        hop = window // 10
        mono = np.pad(mono, (0, -(len(mono) - window) % hop))
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(mono, window)[::hop])


def log_of(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithm of posteriors, finite for 0."""
    logs: NDArray[np.float32] = np.log(scores + np.float32(1e-12))
    return np.minimum(logs, 0)
