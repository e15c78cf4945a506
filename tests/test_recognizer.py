from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile

from speech.bundle import BundleInfo
from speech.errors import AudioError, BundleError
from speech.listen import DEMO
from speech.recognizer import Recognizer

Tone = Callable[[float, float], np.ndarray]


@pytest.fixture(scope="module")
def recognizer(tone_bundle: Path) -> Recognizer:
    return Recognizer.load(tone_bundle)


@pytest.mark.parametrize(("pitch_hz", "word"), [(300, "low"), (2500, "high")])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_names_the_tone(recognizer: Recognizer, tone: Tone, pitch_hz: float, word: str, seconds: float) -> None:
    prediction = recognizer.classify(tone(pitch_hz, seconds), 16000)
    assert prediction.word == word
    assert prediction.confidence == prediction.scores[word] == max(prediction.scores.values())
    assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(prediction.scores) == recognizer.info.labels


def test_silence_is_silence(recognizer: Recognizer) -> None:
    assert recognizer.classify(np.zeros(16000), 16000).word == "_silence_"


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled(recognizer: Recognizer, rate: int) -> None:
    waveform = 0.5 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)
    assert recognizer.classify(waveform, rate).word == "low"


def test_integers_lists_and_stereo(recognizer: Recognizer, tone: Tone) -> None:
    waveform = tone(2500, 1.0)
    expected = recognizer.classify(waveform, 16000)
    assert recognizer.classify(waveform.tolist(), 16000).word == expected.word
    assert recognizer.classify((waveform * 32767).astype(np.int16), 16000).word == expected.word
    assert recognizer.classify(np.stack([waveform, waveform], 1), 16000) == expected


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    samples, rate = soundfile.read(DEMO, dtype="float32")
    assert rate == 16000
    return samples


def test_a_word_anywhere_in_a_long_recording_is_found(demo: np.ndarray) -> None:
    """Longer than two seconds: utterances are sought as in a stream; "up" is said at 3.3 s."""
    shipped, word = Recognizer.load(), demo[46_400:61_000]
    short = shipped.classify(word, 16000)
    for before, after in ((60_000, 0), (40_000, 40_000), (0, 60_000)):
        long = shipped.classify(np.pad(word, (before, after)), 16000)
        assert long.word == short.word == "up"
        assert long.confidence == pytest.approx(short.confidence, abs=0.1)
        assert sum(long.scores.values()) == pytest.approx(1, abs=1e-5)


def test_of_several_words_the_surest_counts(demo: np.ndarray) -> None:
    shipped = Recognizer.load()
    alone = [shipped.classify(demo[begin:end], 16000) for begin, end in ((8000, 22_000), (27_000, 44_000))]
    assert [p.word for p in alone] == ["yes", "no"]
    both = shipped.classify(demo[8000:44_000], 16000)
    assert both.word == max(alone, key=lambda p: p.confidence).word


def test_a_long_recording_may_hold_no_word(demo: np.ndarray) -> None:
    shipped = Recognizer.load()
    talk = shipped.classify(demo[-4 * 16000 :], 16000)
    assert (talk.word, talk.confidence) == ("_unknown_", 1.0), "the sentence that ends the recording"
    nothing = shipped.classify(np.zeros(3 * 16000), 16000)
    assert (nothing.word, nothing.confidence) == ("_silence_", 1.0)
    assert tuple(nothing.scores) == shipped.info.labels


@pytest.mark.parametrize("offset", [-0.4, 0.2])
def test_an_offset_changes_nothing(recognizer: Recognizer, tone: Tone, offset: float) -> None:
    assert recognizer.classify(tone(300, 1.0) + offset, 16000).word == "low"
    assert recognizer.classify(np.full(16000, offset), 16000).word == "_silence_"


@pytest.mark.parametrize("bad", [np.zeros(0), np.array([np.nan]), np.array([np.inf, 0.0])])
def test_unusable_audio_is_refused(recognizer: Recognizer, bad: np.ndarray) -> None:
    with pytest.raises(AudioError):
        recognizer.classify(bad, 16000)


def test_a_rate_that_is_none_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match="0 Hz"):
        recognizer.classify(np.zeros(100), 0)


def test_metadata_survives(info: BundleInfo) -> None:
    assert BundleInfo.from_metadata(info.as_metadata()) == info


def test_an_older_bundle_lacks_the_later_fields(info: BundleInfo) -> None:
    metadata = {k: v for k, v in info.as_metadata().items() if k not in ("speech.thresholds", "speech.step_s")}
    assert BundleInfo.from_metadata(metadata) == info


@pytest.mark.parametrize("field", sorted(set(BundleInfo.__dataclass_fields__) - {"thresholds", "step_s", "offset_s"}))
def test_every_missing_field_is_named(info: BundleInfo, field: str) -> None:
    metadata = info.as_metadata()
    del metadata[f"speech.{field}"]
    with pytest.raises(BundleError, match=f"speech.{field} is missing"):
        BundleInfo.from_metadata(metadata)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "1", "format 1"),
        ("head", '"rnnt"', "head 'rnnt'"),
        ("head", '"ctc"', "_blank_"),
        ("thresholds", '{"low": 2}', "thresholds out of range"),
        ("thresholds", '{"true": 0.9}', "words it lacks: true"),  # what YAML makes of: on
        ("labels", '["yes"]', "_unknown_"),
        ("threshold", "0", "out of range"),
        ("labels", "[", "not JSON"),
    ],
)
def test_strange_metadata_is_refused(info: BundleInfo, field: str, value: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        BundleInfo.from_metadata(info.as_metadata() | {f"speech.{field}": value})


@pytest.mark.parametrize("step_s", [0.0, -0.04, 1.5])
def test_sequences_need_a_step_within_the_window(info: BundleInfo, step_s: float) -> None:
    with pytest.raises(BundleError, match=f"step_s={step_s}"):
        replace(info, head="ctc", labels=("low", "high", "_unknown_", "_blank_"), step_s=step_s)


def test_a_model_without_metadata_is_refused(tone_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tone_bundle)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(BundleError, match=r"plain\.onnx: not a speech bundle"):
        Recognizer.load(tmp_path / "plain.onnx")


def test_labels_must_fit_the_graph(tone_bundle: Path, tmp_path: Path, info: BundleInfo) -> None:
    model = onnx.load(tone_bundle)
    onnx.helper.set_model_props(model, replace(info, labels=("low", "_unknown_", "_silence_")).as_metadata())
    onnx.save(model, tmp_path / "few.onnx")
    with pytest.raises(BundleError, match="3 scores"):
        Recognizer.load(tmp_path / "few.onnx")


def test_the_shipped_bundle_opens_by_default_and_by_name() -> None:
    default, named = Recognizer.load(), Recognizer.load("commands")
    assert default.info == named.info
    assert {"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"} <= set(default.info.words)
    assert default.info.training
    assert default.info.figures
