"""The recipe from end to end on a synthesised corpus: train, resume, export, evaluate."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.optimize import minimize_scalar
from ten import KEYWORDS, TWELVE

from recipes import evaluate, train
from recipes.data.recordings import index_words, read_recording
from recipes.material.toy_corpus import PARTS, WORDS, glide
from recipes.metrics import Share, calibration_error, fold, reliability, summarize
from recipes.protocols.own import Own
from recipes.protocols.speed import Speed
from recipes.protocols.words import confuse
from recipes.task import warm_cosine
from speech import Recognizer
from speech.bundle import UNKNOWN
from speech.errors import BundleError, ConfigError
from speech.listener import Listener
from speech.model import export
from speech.results import Prediction
from speech.segment import high_pass

SMOKE = "recipes/configs/smoke.yaml"


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was broken off after two of its epochs and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    begin = ["--config", SMOKE, "--data.root", str(root), "--run", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finish", lambda *_: None)
        stop = [*begin, "--trainer.max_epochs", "2"]
        assert train.main(stop) == 0
    assert train.main([*begin, "--resume", "true"]) == 0
    return folder


def test_a_run_leaves_everything_behind(run: Path) -> None:
    assert (run / "checkpoints/best.ckpt").is_file()
    assert (run / "checkpoints/last.ckpt").is_file()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    epochs = [row["epoch"] for row in train.read_curves(run)]
    assert epochs == list(range(4)), "the resumed run goes on where the first one stopped"
    results = json.loads((run / "results.json").read_text())
    assert results["parity"] <= export.TOLERANCE
    assert set(results["validation"]) >= {"val/keywords", "val/score"}


def test_it_learns(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["validation"]["val/keywords"] > 0.7  # guessing gives 0.09


def test_the_bundle_recognises_new_clips(run: Path) -> None:
    recognizer = Recognizer.load(run / "smoke.onnx")
    assert recognizer.info.labels == TWELVE
    assert recognizer.info.training["epochs"] <= 4
    rng = np.random.default_rng(99)
    right = [recognizer.classify(glide(word, rng), 16000).word == word for word in WORDS[:10] for _ in range(3)]
    assert np.mean(right) > 0.7


def test_the_bundle_says_nothing_of_the_machine(run: Path) -> None:
    assert str(Path.cwd()).encode() not in (run / "smoke.onnx").read_bytes()


def test_evaluation_prints_and_writes_the_same_figures(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(run / "smoke.onnx"), "--data.root", str(root)]
    out = ["--json", str(tmp_path / "figures.json"), "--pictures", str(tmp_path), "--mistakes"]
    assert evaluate.main([*arguments, "--protocol", "twelve", "words", *out]) == 0
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    assert figures["twelve"]["accuracy"]["total"] == 12
    assert figures["words"]["accuracy"]["total"] == PARTS["testing"] * len(WORDS)
    for protocol in ("twelve", "words"):
        assert f"{100 * figures[protocol]['accuracy']['value']:6.2f} %" in printed
        assert (tmp_path / f"{protocol}.png").read_bytes().startswith(b"\x89PNG")
        assert np.sum(figures[protocol]["confusion"]) == figures[protocol]["accuracy"]["total"]


def test_every_result_has_a_report(run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed(1.0, 2.0, 0.5, 0.4)
    monkeypatch.setattr(evaluate, "evaluate_speed", lambda model: speed)
    own = Own("testing", 0.5, [], {})
    monkeypatch.setattr(evaluate, "evaluate_own", lambda *_: own)
    arguments = ["--model", str(run / "smoke.onnx"), "--data.root", str(root), "--scenes", "clean", "--commands", "10"]
    protocols = [name for name in evaluate.PROTOCOLS if name != "connected"]  # tests/test_connected.py
    assert evaluate.main([*arguments, "--protocol", *protocols, "--report", str(tmp_path / "new/page")]) == 0
    page = (tmp_path / "new/page/index.html").read_text()
    assert page.count("<h2>") == len(protocols) + ("Hardest clips" in page)
    for line in (*str(speed).splitlines(), str(own).splitlines()[0]):
        assert line.strip() in page


def test_what_is_measured_is_kept_when_the_next_protocol_fails(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(run / "smoke.onnx"), "--data.root", str(root), "--protocol", "words", "connected"]
    out = ["--json", str(tmp_path / "figures.json"), "--report", str(tmp_path / "page")]
    assert evaluate.main([*arguments, *out]) == 1
    assert "sequences need head 'ctc'" in capsys.readouterr().err
    assert json.loads((tmp_path / "figures.json").read_text())["words"]["accuracy"]["total"]
    assert (tmp_path / "page/index.html").read_text().count("data:image/png;base64,") == 2


def test_words_are_folded_before_they_are_called_wrong(tmp_path: Path) -> None:
    recognizer = Recognizer.load()
    assert "bed" in recognizer.info.labels
    answers = iter([("bed", 0.9), ("bed", 0.8), ("yes", 0.7), ("_silence_", 0.6)])

    def classify(waveform: np.ndarray, sample_rate: int) -> Prediction:
        word, confidence = next(answers)
        return Prediction(word, confidence, {})

    recognizer.classify = classify  # type: ignore[method-assign]
    clip = np.zeros(100, np.float32)
    said = [("_unknown_", "a"), ("yes", "b"), ("bed", "c"), ("_silence_", "d")]
    result = confuse(recognizer, ((clip, word, name) for word, name in said), KEYWORDS, "title", official=True)
    assert result.labels == TWELVE
    assert [mistake.name for mistake in result.mistakes] == ["b", "c"]
    assert result.judged == [(0.9, True), (0.8, False), (0.7, False), (0.6, True)]
    assert result.accuracy.hits == 2
    assert result.calibration_error == pytest.approx((0.1 + 0.8 + 0.7 + 0.4) / 4)


def test_the_bundle_has_the_temperature_that_suits_validation(run: Path, root: Path) -> None:
    scorer, notes = export.load_checkpoint(run / "checkpoints/best.ckpt")
    words = [r for r in index_words(root) if r.part == "validation"]
    waveforms = torch.stack([torch.from_numpy(high_pass(read_recording(r))) for r in words])
    with torch.no_grad():
        logits = scorer.logits(waveforms)
    labels = torch.tensor([notes["labels"].index(r.word if r.word in notes["labels"] else UNKNOWN) for r in words])
    found = minimize_scalar(
        lambda t: float(torch.nn.functional.cross_entropy(logits / t, labels)), bounds=(0.2, 5), method="bounded"
    )
    assert Recognizer.load(run / "smoke.onnx").info.training["temperature"] == pytest.approx(found.x, rel=0.03)


def test_calibration_error_is_the_distance_of_confidence_and_truth() -> None:
    sure = [(0.95, True)] * 19 + [(0.95, False)]
    assert calibration_error(sure) == pytest.approx(0)
    assert calibration_error([(0.95, True)] * 10 + [(0.95, False)] * 10) == pytest.approx(0.45)
    both = sure + [(0.55, True)] * 20  # each bin by its size
    assert calibration_error(both) == pytest.approx(0.45 / 2)
    assert [b.right.total for b in reliability([(1.0, True), (0.0, False), (0.91, True)])] == [1, 2]
    assert np.isnan(calibration_error([]))


def test_thresholds_of_single_words_are_the_listeners_own(run: Path, tmp_path: Path) -> None:
    scorer, notes = export.load_checkpoint(run / "checkpoints/last.ckpt")
    bundle = tmp_path / "own.onnx"
    export.export(scorer, export.bundle_info(notes, 0.7, {}, {}, {"yes": 0.95}), bundle)
    thresholds = Listener(Recognizer.load(bundle), ["yes", "no"]).thresholds
    assert thresholds == {"yes": 0.95, "no": 0.7}


def test_offsets_move_the_posteriors(run: Path) -> None:
    scorer, notes = export.load_checkpoint(run / "checkpoints/last.ckpt")
    waveform = torch.from_numpy(glide("yes", np.random.default_rng(0)).astype(np.float32))[None]
    before = torch.log(scorer(waveform))
    scorer.shift({"yes": -2.0}, notes["labels"])
    moved = torch.log(scorer(waveform)) - before
    yes = notes["labels"].index("yes")
    others = torch.cat([moved[0, :yes], moved[0, yes + 1 :]])
    torch.testing.assert_close(others - moved[0, yes], torch.full_like(others, 2.0))
    with pytest.raises(ConfigError, match="offsets of maybe"):
        scorer.shift({"maybe": 1.0}, notes["labels"])


def test_the_temperature_is_found_that_was_used() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=generator)
    drawn = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    labels = ["abcde"[n] for n in drawn]
    assert export.best_temperature(2 * logits, labels, "abcde") == pytest.approx(2, rel=0.08)
    assert export.best_temperature(0.5 * logits, labels, "abcde") == pytest.approx(0.5, rel=0.08)


def test_the_lstm_from_its_equations_goes_on_where_torch_stopped(run: Path, root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "again")
    begin = ["--config", SMOKE, "--data.root", str(root), "--run", str(folder), "--resume", "true"]
    assert train.main([*begin, "--model.lstm", "equations", "--trainer.max_epochs", "5"]) == 0
    before, after = train.read_curves(folder)[-2:]
    assert after["epoch"] == 4
    assert after["val/keywords"] > before["val/keywords"] - 0.2
    assert Recognizer.load(folder / "smoke.onnx").info.labels == TWELVE


def test_training_goes_on_from_a_bundle(run: Path, root: Path, tmp_path: Path) -> None:
    arguments = ["--config", SMOKE, "--data.root", str(root), "--run", str(tmp_path), "--trainer.max_epochs", "1"]
    start = ["--model.start", str(run / "smoke.onnx"), "--average", "0.5", "--model.learning_rate", "0.001"]
    assert train.main([*arguments, *start]) == 0
    (begun,) = train.read_curves(tmp_path)
    assert begun["val/keywords"] > 0.6, "it knows what it had learnt"


def test_a_bundle_gives_back_its_network(run: Path, tmp_path: Path) -> None:
    scorer, notes = export.load_checkpoint(run / "checkpoints/last.ckpt")
    scorer.temperature = 1.7
    scorer.shift({"yes": -1.0}, notes["labels"])
    notes_of_training = {"network": notes["network"], "offsets": {"yes": -1.0}, "temperature": 1.7}
    export.export(scorer, export.bundle_info(notes, 0.7, notes_of_training, {}), tmp_path / "a.onnx")
    again, found = export.load_network(tmp_path / "a.onnx")
    assert found["labels"] == notes["labels"]
    waveform = 0.1 * torch.randn(3, 16000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(waveform), scorer(waveform), atol=1e-5, rtol=1e-4)


def test_a_bundle_of_another_make_is_refused(tone_bundle: Path) -> None:
    with pytest.raises(BundleError, match="can be trained further"):
        export.load_network(tone_bundle)


def test_a_run_of_another_size_is_not_resumed(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", SMOKE, "--data.root", str(root), "--run", str(run), "--resume", "true"]
    assert train.main([*arguments, "--model.network.hidden", "4", "--trainer.max_epochs", "9"]) == 1
    reported = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(reported) == 1
    assert "last.ckpt holds another network" in reported[0]


def test_a_run_is_not_overwritten(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", SMOKE, "--data.root", str(root), "--run", str(run)]) == 1
    assert "--resume true" in capsys.readouterr().err


def test_missing_data_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", SMOKE, "--data.root", str(tmp_path), "--run", str(tmp_path / "run")]
    assert train.main(arguments) == 1
    assert "--data.download true" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate.main(["--data.root", str(tmp_path), "--protocol", "twelve"]) == 1
    assert "speech_commands_test_set_v0.02" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.ckpt").write_bytes(b"no")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    (tmp_path / "empty.ckpt").touch()
    for name in ("no.ckpt", "other.ckpt", "empty.ckpt", "missing.ckpt"):
        with pytest.raises(BundleError, match=name):
            export.load_checkpoint(tmp_path / name)


def test_a_bundle_that_differs_from_torch_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, notes = export.load_checkpoint(run / "checkpoints/best.ckpt")
    info = export.bundle_info(notes, 0.7, {}, {})
    target = tmp_path / "a.onnx"
    assert export.export(scorer, info, target) <= export.TOLERANCE
    model = onnx.load(target)
    assert {p.key for p in model.metadata_props} == set(info.as_metadata())
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(BundleError, match="differ"):
        export.export(scorer, info, target)
    assert not target.exists()


def test_wilson_interval() -> None:
    low, high = Share(95, 100).interval  # published example values for 95 of 100
    assert (low, high) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert Share(0, 0).interval == (0, 1)


def test_folding_counts_other_words_as_unknown() -> None:
    labels = (*TWELVE, "bed")
    confusion = np.zeros((13, 13), np.int64)
    bed, yes, unknown = labels.index("bed"), labels.index("yes"), labels.index("_unknown_")
    confusion[bed, bed], confusion[bed, yes], confusion[yes, bed], confusion[yes, yes] = 5, 2, 1, 7
    folded = fold(confusion, labels, KEYWORDS)
    assert folded.sum() == 15
    assert folded[unknown, unknown] == 5
    assert folded[unknown, yes] == 2
    summary = summarize(confusion, labels, KEYWORDS)
    assert (summary.keywords.hits, summary.keywords.total) == (7, 8)
    assert (summary.unknown_as_command.hits, summary.unknown_as_command.total) == (2, 7)
    assert summary.accuracy.hits == 12
    assert summary.balanced == pytest.approx((7 / 8 + 5 / 7) / 2)


def test_the_learning_rate_follows_one_cycle() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 500, pct_start=0.08, cycle_momentum=False)
    for step in range(500):
        assert warm_cosine(step, 500, 0.08) == pytest.approx(theirs.get_last_lr()[0], abs=1e-5)
        optimizer.step()
        if step < 499:
            theirs.step()


CONFIGS = sorted(path for path in Path("recipes/configs").glob("*.yaml") if path.name != "base.yaml")


def documented(config: Path) -> list[str]:
    """The arguments of the command at the top of a config, without what the toy corpus lacks."""
    command = config.read_text().partition("python -m recipes.train ")[2].replace("\\\n#", " ").splitlines()[0]
    arguments = dict(zip(command.split()[::2], command.split()[1::2], strict=True))
    configs = [f"--config={word}" for word in command.split() if word.endswith(".yaml")]
    assert configs[-1] == f"--config={config}"
    absent = ("--config", "--data.root", "--data.teacher", "--model.start")
    return configs + [f"{name}={value}" for name, value in arguments.items() if name not in absent]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_command_of_each_config_trains_on_the_toy_corpus(config: Path, root: Path, tmp_path: Path) -> None:
    assert len(CONFIGS) == 4
    brief = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--data.per_kind=5", "--data.batch_size=8"]
    arguments = [*documented(config), f"--data.root={root}", f"--run={tmp_path}", "--export=false", *brief]
    assert train.main([*arguments, "--trainer.enable_progress_bar=false"]) == 0
    assert (tmp_path / "checkpoints/last.ckpt").is_file()
    kept = next(tmp_path.glob("curves-*/config.yaml")).read_text()
    assert "gradient_clip_val: 1.0" in kept, "what base.yaml says"
