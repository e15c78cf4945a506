"""What the inspection shows, against the network it came from, and what it says when it can't."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from recipes.inspect import HOP_S, Inspection, inspect, load, main
from recipes.metrics import TWELVE
from recipes.toy import RATE, glide
from speech.bundle import DEFAULT_MODEL
from speech.recognizer import Recognizer
from speech.training.export import load_checkpoint
from speech.training.features import FeatureConfig
from speech.training.networks import Classifier, LSTMKind, NetworkConfig

NETWORK = NetworkConfig(channels=12, stacking_channels=14, hidden=10, layers=2)


def save(target: Path, lstm: LSTMKind = "torch") -> Path:
    """A checkpoint as the recipe writes it, of an untrained network."""
    features = FeatureConfig()
    torch.manual_seed(0)
    classifier = Classifier(features.n_mfcc, len(TWELVE), NETWORK, lstm)
    notes = {"labels": list(TWELVE), "features": asdict(features), "network": asdict(NETWORK), "lstm": lstm, "epoch": 1}
    state = {f"classifier.{name}": value for name, value in classifier.state_dict().items()}
    torch.save({"speech": notes, "state_dict": state}, target)
    return target


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run") / "best.ckpt")


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """2.5 s: silence, a word, silence."""
    word = glide("left", np.random.default_rng(0))
    return np.concatenate([np.zeros(RATE), word, np.zeros(RATE // 2)]).astype(np.float32)


@pytest.fixture(scope="module")
def seen(checkpoint: Path, waveform: np.ndarray) -> Inspection:
    return inspect(*load(checkpoint), waveform, start_s=0.9)


def theirs(checkpoint: Path, window: np.ndarray) -> np.ndarray:
    """The posteriors by torch's own LSTM."""
    scorer, _ = load_checkpoint(checkpoint)
    with torch.no_grad():
        return scorer(torch.from_numpy(window.astype(np.float32))[None])[0].numpy()


def test_the_scores_are_those_of_the_network(checkpoint: Path, waveform: np.ndarray, seen: Inspection) -> None:
    begin = round(0.9 * RATE)
    np.testing.assert_allclose(seen.scores, theirs(checkpoint, waveform[begin : begin + RATE]), atol=1e-5)
    assert seen.best(1)[0][0] == TWELVE[seen.scores.argmax()]


def test_posteriors_over_time_are_those_of_each_second(
    checkpoint: Path, waveform: np.ndarray, seen: Inspection
) -> None:
    padded = np.pad(waveform, RATE // 2)
    assert seen.window_s[-1] <= 2.5 < seen.window_s[-1] + 2 * HOP_S
    for i in (0, 18, len(seen.window_s) - 1):
        begin = round(float(seen.window_s[i]) * RATE)  # half a second earlier, but padded by as much
        np.testing.assert_allclose(seen.posteriors[i], theirs(checkpoint, padded[begin : begin + RATE]), atol=1e-5)


def test_attention_and_gates_are_shares(seen: Inspection) -> None:
    assert seen.attention.sum() == pytest.approx(1, abs=1e-5)
    assert [gates.name for gates in seen.gates] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for gates in seen.gates:
        for gate in (gates.forget, gates.input, gates.output):
            assert gate.shape == seen.step_s.shape == seen.attention.shape
            assert ((gate > 0) & (gate < 1)).all()


def test_the_first_gates_follow_from_the_weights(checkpoint: Path, waveform: np.ndarray, seen: Inspection) -> None:
    """At its first step the forward cell of layer 0 has no past: only x_t and the biases count."""
    network = load_checkpoint(checkpoint)[0].network
    state, hidden = network.encoder.lstm.state_dict(), NETWORK.hidden
    begin = round(0.9 * RATE)
    with torch.no_grad():
        features = load_checkpoint(checkpoint)[0].mfcc(torch.from_numpy(waveform[begin : begin + RATE])[None])
        x = network.encoder.steps(features)[0, 0]
    total = state["weight_ih_l0"] @ x + state["bias_ih_l0"] + state["bias_hh_l0"]
    in_torch_order = torch.sigmoid(total).reshape(4, hidden).mean(1)  # input, forget, candidate, output
    l0 = seen.gates[0]
    assert [l0.input[0], l0.forget[0], l0.output[0]] == pytest.approx(in_torch_order[[0, 1, 3]].tolist(), abs=1e-5)


def test_times_lie_in_the_window(seen: Inspection) -> None:
    assert seen.start_s == pytest.approx(0.9)
    assert seen.step_s[0] > 0.9
    assert seen.step_s[-1] < 1.9
    np.testing.assert_allclose(np.diff(seen.step_s), 0.04, atol=1e-5)  # stride 2 * stacking 2 * 10 ms


def test_by_default_the_clearest_window_is_taken(checkpoint: Path, waveform: np.ndarray) -> None:
    found = inspect(*load(checkpoint), waveform)
    inside = (found.window_s >= 0.5 - 1e-4) & (found.window_s <= 2.0 + 1e-4)
    words = found.posteriors[:, :10]  # the rest of TWELVE is _unknown_ and _silence_
    assert found.scores[:10].max() == pytest.approx(words[inside].max(), abs=1e-5)


def test_a_short_recording_stands_in_silence(checkpoint: Path, waveform: np.ndarray) -> None:
    short = waveform[RATE : RATE + RATE // 2]
    found = inspect(*load(checkpoint), short)
    assert found.duration_s == 1
    assert found.start_s == 0
    window = np.pad(short, (RATE // 4, RATE // 4))
    np.testing.assert_allclose(found.scores, theirs(checkpoint, window), atol=1e-5)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.5])
def test_the_command_line_draws(
    checkpoint: Path, waveform: np.ndarray, seconds: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "a.wav", tmp_path / "new/a.png"
    soundfile.write(file, waveform[-round(seconds * RATE) :], RATE)
    assert main(["--model", str(checkpoint), str(file), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    looked, heard, path = capsys.readouterr().out.splitlines()
    assert f"{max(1, seconds):.2f} s" in looked
    assert heard.startswith("heard: ")
    assert path == str(picture)


def test_the_shipped_bundle_is_looked_into_as_it_answers(waveform: np.ndarray) -> None:
    scorer, labels = load(DEFAULT_MODEL)
    window = waveform[RATE : 2 * RATE]
    expected = Recognizer.load().scores(window[None])[0]
    np.testing.assert_allclose(inspect(scorer, labels, window).scores, expected, atol=1e-5)


def test_mistakes_are_told_in_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "good.wav", np.zeros(2 * RATE), RATE)
    (tmp_path / "no.ckpt").write_bytes(b"no")
    rnn = save(tmp_path / "rnn.ckpt", "rnn")
    good, picture = str(tmp_path / "good.wav"), str(tmp_path / "a.png")
    cases = {
        "no such file": [str(checkpoint), str(tmp_path / "missing.wav")],
        "holds no audio": [str(checkpoint), str(tmp_path / "empty.wav")],
        "is no checkpoint": [str(tmp_path / "no.ckpt"), good],
        "missing.ckpt": [str(tmp_path / "missing.ckpt"), good],
        "plain RNN": [str(rnn), good],
        "hears sequences": [str(DEFAULT_MODEL.with_name("connected.onnx")), good],
        "within 0..1.00 s": [str(checkpoint), good, "--start", "1.5"],
        "not at nan": [str(checkpoint), good, "--start", "nan"],
    }
    for expected, (model, *rest) in cases.items():
        assert main(["--model", model, *rest, "--output", picture]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert expected in err
    assert not Path(picture).exists()


def test_only_a_png_is_written(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(checkpoint), "a.wav", "--output", str(tmp_path / "a.jpg")])
