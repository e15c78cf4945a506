"""Waveform in, scores out: a bundle on ONNX Runtime."""

import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from speech.bundle import BLANK, SILENCE, UNKNOWN, BundleInfo, bundle_path
from speech.errors import BundleError
from speech.grammar import Grammar, NGram
from speech.own.matching import WordModel, learn, with_own_words
from speech.own.similarity import Similarity, Vectors
from speech.own.words import OwnWord, OwnWords
from speech.results import Prediction, SpokenWord
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, high_pass, utterances_of
from speech.sequences import beam_search, confidences, log_of
from speech.sound.files import Block, Samples, as_mono, resample

SHORTEST_S = 0.2
"""Shorter waveforms are padded with silence to this length, because the network needs a few steps."""
WHOLE_S = 2.0
"""Recordings up to this length are classified whole; longer ones are cut into utterances first."""


def open_session(model: str | bytes) -> onnxruntime.InferenceSession:
    """Open a model, by its path or its content, on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Recognizer:
    """A loaded bundle; `Recognizer.load()` makes one."""

    own: OwnWords | None = None
    """Words that are recognised in addition to the bundle's, see `hear_also`."""

    def __init__(self, session: onnxruntime.InferenceSession, info: BundleInfo) -> None:
        self._session, self.info = session, info
        self.models: dict[OwnWord, WordModel] = {}
        self._looking = threading.Lock()

    @classmethod
    def load(cls, path: str | Path | None = None, own: OwnWords | None = None) -> "Recognizer":
        """Open a bundle on one CPU thread.

        Args:
            path: an `.onnx` bundle, or the name of a shipped one (`commands`, `connected`); default: `commands`.
            own: taught words, to recognise in addition to the bundle's.
        Raises:
            BundleError: the file is missing, is not ONNX or not a bundle of this format; it can't recognise own words.
        """
        path = bundle_path(path)
        try:
            session = open_session(str(path))
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise BundleError(f"{path} is not an ONNX model that can be opened") from error
        try:
            info = BundleInfo.from_metadata(session.get_modelmeta().custom_metadata_map)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: damaged bundle: its metadata is not text") from error
        if info.sample_rate_hz != SAMPLE_RATE_HZ:
            raise BundleError(
                f"{path}: made for {info.sample_rate_hz} Hz, but this version supports only {SAMPLE_RATE_HZ} Hz"
            )
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if [i.name for i in inputs] != ["waveform"] or not outputs or outputs[0].shape[-1] != len(info.labels):
            raise BundleError(f"{path}: the graph must map `waveform` to {len(info.labels)} scores")
        recognizer = cls(session, info)
        if own is not None:
            recognizer.hear_also(own)
        return recognizer

    def hear_also(self, own: OwnWords) -> None:
        """Recognise taught words in addition to the bundle's; they are learnt from their recordings, 30 ms each.

        Raises:
            BundleError: the bundle recognises sequences, or lacks the data that own words need.
        """
        self.models = learn(own, self.similarity, self.embed, self.models) if own else {}
        self.own = own

    def look_again(self) -> None:
        """Recognise what was taught, and no more what was forgotten, since the own words were read.

        It only looks at the folder unless that has changed; all threads that share a recogniser may do so.
        """
        with self._looking:
            if self.own is not None and not self.info.has_steps and self.own.has_changed:
                self.hear_also(OwnWords.load(self.own.folder))

    @cached_property
    def similarity(self) -> Similarity:
        """The bundle's data for comparing embeddings.  Raises BundleError if it has none."""
        found = Similarity.from_metadata(self._session.get_modelmeta().custom_metadata_map)
        if found is None or "embedding" not in [output.name for output in self._session.get_outputs()]:
            kind = "recognises sequences" if self.info.has_steps else "was exported without recipes.similarity"
            raise BundleError(f"this bundle {kind}, so it can't learn own words; --model commands can")
        return found

    @property
    def words(self) -> tuple[str, ...]:
        """The words that can be recognised: the bundle's and the user's own."""
        own = self.own or ()
        return (*self.info.words, *(name for name in own if name not in self.info.words))

    @property
    def thresholds(self) -> dict[str, float]:
        """The words that can be recognised, each with its default threshold."""
        return {word: self.info.thresholds.get(word, self.info.threshold) for word in self.words}

    def scores(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the posteriors of waveforms of equal length.

        Args:
            waveforms: (batch, time) float32 in -1..1 at `info.sample_rate_hz`; time >= `SHORTEST_S`.
        Returns:
            (batch, labels), or (batch, steps, labels) from a CTC head; each row sums to one.
        Raises:
            BundleError: the scores are not finite, so the bundle is damaged.
        """
        scores: NDArray[np.float32] = self._session.run(["scores"], {"waveform": waveforms})[0]
        if not np.isfinite(scores).all():
            raise BundleError("the bundle is damaged: its scores are not finite")
        return scores

    def posteriors(self, waveform: Block) -> dict[str, float]:
        """The posterior of each label for one utterance (time,) at `info.sample_rate_hz`; they sum to one.

        For a CTC head: the probability that the utterance holds exactly this token; blank is called `_silence_`.
        """
        if self.models:
            return self._with_own(self.models, waveform)
        scores = self.scores(self._long_enough(waveform)[None])[0]
        if self.info.has_steps:
            scores = confidences(log_of(scores), self.info.labels.index(BLANK)).astype(np.float32)
        return dict(zip(self.info.classes, scores.tolist(), strict=True))

    def _with_own(self, models: Mapping[OwnWord, WordModel], waveform: Block) -> dict[str, float]:
        scores, embedding = self.read(waveform)
        posteriors = dict(zip(self.info.classes, scores.tolist(), strict=True))
        vectors = self.similarity.project(embedding[None])
        margins = {word.name: float(model.margins(self.similarity, vectors)[0]) for word, model in models.items()}
        thresholds = {name: self.info.thresholds.get(name, self.info.threshold) for name in margins}
        return with_own_words(posteriors, margins, thresholds)

    def read(self, waveform: Block) -> tuple[NDArray[np.float32], Vectors]:
        """The posteriors (labels,) of one utterance (time,), and the embedding: the input of the class layer."""
        inputs = {"waveform": self._long_enough(waveform)[None]}
        scores, embeddings = self._session.run(["scores", "embedding"], inputs)
        return scores[0], embeddings[0]

    def embed(self, waveform: Block) -> Vectors:
        """The embedding of one utterance (time,), as in `read`."""
        return self.read(waveform)[1]

    def classify(self, waveform: Samples, sample_rate: int) -> Prediction:
        """Recognise the word in a recording.

        A recording longer than `WHOLE_S` is cut into utterances as in a stream; the one with the most confident word is
        returned.

        Args:
            waveform: (time,) or (time, channels); float in -1..1 or 16/32-bit integers.
            sample_rate: in Hz.
        Raises:
            AudioError: the recording is empty or holds NaN or infinity.
        """
        mono = resample(as_mono(waveform), sample_rate, self.info.sample_rate_hz)
        if len(mono) > WHOLE_S * self.info.sample_rate_hz:
            config = ListenerConfig()
            found = utterances_of(mono, config, config.max_word_s)
            candidates = [self.posteriors(u.waveform) for u in found if not u.is_long]
            talk = dict.fromkeys(self.info.classes, 0.0) | {UNKNOWN if found else SILENCE: 1.0}
            posteriors = max(candidates, key=self._most_confident, default=talk)
        else:
            posteriors = self.posteriors(high_pass(mono))
        word = max(posteriors, key=posteriors.__getitem__)
        return Prediction(word, posteriors[word], posteriors)

    def _most_confident(self, posteriors: Mapping[str, float]) -> float:
        return max(posteriors[word] for word in self.words)

    def transcribe(
        self,
        waveform: Samples,
        sample_rate: int,
        grammar: Grammar | None = None,
        language_model: NGram | None = None,
        threshold: float | None = None,
        weight: float = 0.25,
    ) -> list[SpokenWord]:
        """Recognise the words in a recording of any length, in order; needs a bundle with a CTC head.

        Args:
            waveform: (time,) or (time, channels); float in -1..1 or 16/32-bit integers.
            sample_rate: in Hz.
            grammar: limits the result to its sentences.
            language_model: probabilities of words that follow each other.
            threshold: words with a lower confidence are dropped, 0..1; default: the bundle's.
            weight: weight of the language model beside the audio, at least 0.  The Listener's is lower
                (`speech.decide.SequenceReader.WEIGHT`) because one doubtful token rejects a whole utterance there.
        Raises:
            AudioError: the recording is empty or holds NaN or infinity.
            BundleError: the bundle has another head.
        """
        info = self.info
        if not info.has_steps:
            raise BundleError(f"a bundle with head {info.head!r} recognises single words; sequences need head 'ctc'")
        mono = high_pass(resample(as_mono(waveform), sample_rate, info.sample_rate_hz))
        threshold = info.threshold if threshold is None else threshold
        tokens = beam_search(
            log_of(self.steps(mono)), info.labels, grammar=grammar, language_model=language_model,
            weight=weight, threshold=threshold, time_s=self.time_s,
        )  # fmt: skip
        return [token for token in tokens if token.word != UNKNOWN]

    def time_s(self, step: int) -> float:
        """Start of a step of a CTC head, in seconds."""
        return max(0.0, self.info.offset_s + (step - 0.5) * self.info.step_s)

    def steps(self, mono: Block) -> NDArray[np.float32]:
        """Posteriors (steps, labels) of a recording; a long one is cut into overlapping windows whose middles are kept.

        The network was trained on a few seconds; one pass over minutes would be outside its training conditions.
        """
        rate_hz = self.info.sample_rate_hz
        step, window = round(self.info.step_s * rate_hz), round(2 * self.info.window_s * rate_hz)
        mono = self._long_enough(mono)
        if len(mono) <= window:
            return self.scores(mono[None])[0]
        margin = window // 4 // step  # steps that are only context
        hop = window - 2 * margin * step
        scores = [self.scores(mono[begin : begin + window][None])[0] for begin in range(0, len(mono) - hop // 2, hop)]
        kept = hop // step
        inner = [part[margin : margin + kept] for part in scores[1:-1]]
        return np.concatenate([scores[0][: margin + kept], *inner, scores[-1][margin:]])

    def _long_enough(self, waveform: Block) -> Block:
        """Pad a waveform shorter than `SHORTEST_S` with silence on both sides."""
        lacking = max(0, round(SHORTEST_S * self.info.sample_rate_hz) - len(waveform))
        return np.pad(waveform, (lacking // 2, lacking - lacking // 2))
