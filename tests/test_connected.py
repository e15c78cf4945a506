"""The CTC recipe from end to end on a synthesised corpus."""

import json
from pathlib import Path

import numpy as np
import pytest
from scripted import LoudVoice
from ten import KEYWORDS
from torchaudio.functional import edit_distance

from recipes import evaluate, train
from recipes.material.toy_corpus import glide
from speech import Listener, Recognizer
from speech.bundle import BLANK, UNKNOWN
from speech.model import export

SMOKE = "recipes/configs/smoke_connected.yaml"


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    assert train.main(["--config", SMOKE, "--data.root", str(root), "--run", str(folder)]) == 0
    return folder


def test_a_run_leaves_everything_behind(run: Path) -> None:
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((run / "results.json").read_text())
    assert results["parity"] <= export.TOLERANCE
    rates = [c["whole_error_rate"]["value"] for c in results["validation"]["conditions"]]
    assert rates[0] < 0.85  # a network that says nothing has 1


def test_the_bundle_transcribes_and_listens(run: Path) -> None:
    recognizer = Recognizer.load(run / "smoke.onnx")
    assert recognizer.info.labels == (*KEYWORDS, UNKNOWN, BLANK)
    assert recognizer.info.step_s == pytest.approx(0.04)
    said = ["yes", "stop", "stop", "go", "left", "no"]
    errors, reported, invented = 0, 0, 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        audio = np.concatenate([glide(word, rng).astype(np.float32) for word in said])
        errors += edit_distance(said, [word.word for word in recognizer.transcribe(audio, 16000)])
        listener = Listener(recognizer, voice=LoudVoice())
        live = [detection.word for detection in listener.listen([0.9 * audio / np.abs(audio).max()])]
        reported += len(live)
        invented += edit_distance(said, live) - (len(said) - len(live))  # what is not a word left out
    assert errors <= 0.4 * 4 * len(said)  # guessing has one right in ten
    assert reported >= 10
    assert invented == 0


def test_the_other_head_goes_on_from_its_encoder(run: Path, root: Path, tmp_path: Path) -> None:
    arguments = ["--config", SMOKE, "--data.root", str(root), "--run", str(tmp_path / "run")]
    start = ["--model.start", str(run / "checkpoints/last.ckpt"), "--model.head", "classification"]
    assert train.main([*arguments, *start, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]) == 0
    assert Recognizer.load(tmp_path / "run/smoke.onnx").info.head == "classification"


def test_evaluation_prints_draws_and_writes(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(run / "smoke.onnx"), "--data.root", str(root), "--held-out", "0", "--mixtures", "5"]
    out = ["--json", str(tmp_path / "figures.json"), "--pictures", str(tmp_path)]
    assert evaluate.main([*arguments, "--protocol", "connected", "twelve", *out]) == 0
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    rate = figures["connected"]["conditions"][0]["live_error_rate"]
    assert f"{100 * rate['value']:6.2f} %" in printed
    assert (tmp_path / "connected.png").read_bytes().startswith(b"\x89PNG")
    assert figures["twelve"]["accuracy"]["total"] == 12


def test_a_bundle_of_single_words_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--data.root", str(root), "--held-out", "0", "--protocol", "connected"]) == 1
    assert "sequences need head 'ctc'" in capsys.readouterr().err
