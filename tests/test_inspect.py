"""What the inspection shows, against the network it came from, and what it says when it can't."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.material.toy_corpus import RATE, glide
from recipes.study.inspect import HOP_S, Inspection, inspect, main
from speech import Listener, Recognizer
from speech.listen import DEMO
from speech.model.networks import Network, NetworkConfig
from speech.results import Examined
from speech.segment import high_pass
from speech.sound.files import read

NETWORK = NetworkConfig(channels=(4, 6, 8), width=14, hidden=10)
Untrained = Callable[[str, NetworkConfig], tuple[Path, Network]]


@pytest.fixture(scope="module")
def bundle(untrained: Untrained) -> Path:
    return untrained("classification", NETWORK)[0]


@pytest.fixture(scope="module")
def sequences(untrained: Untrained) -> Path:
    return untrained("ctc", NETWORK)[0]


@pytest.fixture(scope="module")
def word() -> np.ndarray:
    return np.pad(glide("left", np.random.default_rng(0)), RATE // 10).astype(np.float32)


@pytest.fixture(scope="module")
def seen(bundle: Path, word: np.ndarray) -> Inspection:
    return inspect(bundle, word)


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    return read(DEMO, RATE)


def examined(bundle: Path, recording: np.ndarray) -> list[Examined]:
    """What the live loop reads, talk left out."""
    found: list[Examined] = []
    listener = Listener(Recognizer.load(bundle), on_utterance=found.append)
    listener.feed(recording)
    listener.flush()
    return [one for one in found if len(one.waveform)]


def test_a_short_recording_is_looked_into_as_it_is_classified(bundle: Path, word: np.ndarray, seen: Inspection) -> None:
    prediction = Recognizer.load(bundle).classify(word, RATE)
    assert seen.best(1) == [(prediction.word, pytest.approx(prediction.confidence, abs=1e-5))]
    np.testing.assert_allclose(seen.trace.scores, list(prediction.scores.values()), atol=1e-5)
    assert (seen.start_s, seen.end_s) == (0, len(word) / RATE)


def test_posteriors_over_time_are_those_of_what_was_heard_until_then(
    bundle: Path, word: np.ndarray, seen: Inspection
) -> None:
    recognizer, filtered = Recognizer.load(bundle), high_pass(word)
    np.testing.assert_allclose(np.diff(seen.heard_s)[:-1], HOP_S, atol=1e-6)
    assert seen.heard_s[-1] == pytest.approx(len(word) / RATE)
    for i in (0, 3, len(seen.heard_s) - 1):
        part = filtered[: round(float(seen.heard_s[i]) * RATE)]
        np.testing.assert_allclose(seen.posteriors[i], recognizer.scores(part[None])[0], atol=1e-5)


def test_an_utterance_is_found_by_a_moment_within_it(bundle: Path, demo: np.ndarray) -> None:
    expected = examined(bundle, demo)[2]
    middle_s = expected.start_s + len(expected.waveform) / RATE / 2
    found = inspect(bundle, demo, at_s=middle_s)
    assert found.start_s == expected.start_s
    np.testing.assert_array_equal(found.utterance, expected.waveform)
    np.testing.assert_allclose(found.trace.scores, list(expected.scores.values()), atol=1e-5)


def test_by_default_the_most_confident_answer_is_looked_into(bundle: Path, demo: np.ndarray) -> None:
    utterances = examined(bundle, demo)
    assert len(utterances) > 5
    assert not any(one.detections for one in utterances), "an untrained network reports nothing"
    clearest = max(utterances, key=lambda one: one.rejection.confidence if one.rejection else 0)
    assert inspect(bundle, demo).start_s == clearest.start_s


def test_sequences_have_a_posterior_for_each_step(sequences: Path, word: np.ndarray) -> None:
    found = inspect(sequences, word)
    np.testing.assert_array_equal(found.posteriors, found.trace.scores)
    np.testing.assert_array_equal(found.heard_s, found.trace.step_s)
    label, score = found.best(1)[0]
    assert score == found.posteriors.max()
    assert found.labels[found.posteriors.max(0).argmax()] == label


@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("head", ["bundle", "sequences"])
def test_the_command_line_draws(
    head: str, seconds: float, demo: np.ndarray, tmp_path: Path, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, file, picture = request.getfixturevalue(head), tmp_path / "a.wav", tmp_path / "new/a.png"
    soundfile.write(file, demo[RATE // 2 :][: round(seconds * RATE)], RATE)
    assert main(["--model", str(model), str(file), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    looked, heard, path = capsys.readouterr().out.splitlines()
    assert "looked into" in looked
    assert heard.startswith("heard: ")
    assert path == str(picture)


def test_mistakes_are_reported_in_one_line(
    bundle: Path, tone_bundle: Path, demo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = {"empty": np.zeros(0), "short": np.zeros(RATE), "silence": np.zeros(3 * RATE), "demo": demo}
    files = {name: str(tmp_path / f"{name}.wav") for name in (*recordings, "missing")}
    for name, recording in recordings.items():
        soundfile.write(files[name], recording, RATE)
    (tmp_path / "no.onnx").write_bytes(b"no")
    picture = str(tmp_path / "a.png")
    cases = {
        "no such file": [str(bundle), files["missing"]],
        "holds no audio": [str(bundle), files["empty"]],
        "not an ONNX model": [str(tmp_path / "no.onnx"), files["demo"]],
        "no model at": [str(tmp_path / "missing.onnx"), files["demo"]],
        "no LSTM": [str(tone_bundle), files["demo"]],
        "utterances: none": [str(bundle), files["silence"]],
        "no utterance at 99 s, or only talk; utterances: 0": [str(bundle), files["demo"], "--at", "99"],
        "no utterance at nan s": [str(bundle), files["demo"], "--at", "nan"],
        "the recording is 1.00 s long": [str(bundle), files["short"], "--at", "1.5"],
    }
    for expected, (model, *rest) in cases.items():
        status = 2 if "utterance" in expected or "recording is" in expected else 1
        assert main(["--model", model, *rest, "--output", picture]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert expected in err
    assert not Path(picture).exists()


def test_only_a_png_is_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(bundle), "a.wav", "--output", str(tmp_path / "a.jpg")])
