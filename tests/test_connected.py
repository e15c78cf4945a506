"""Sequences: the CTC recipe from end to end on a synthesised corpus, the mixtures that measure it, other readers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import LoudVoice
from ten import KEYWORDS
from torchaudio.functional import edit_distance

from recipes import evaluate, train
from recipes.evaluate import PARTS
from recipes.material.toy_corpus import RATE, glide
from recipes.metrics import Share
from recipes.protocols import against_pocketsphinx
from recipes.protocols.against_pocketsphinx import arpa, excerpt, jsgf, pocketsphinx_readers
from recipes.protocols.connected import (
    RATIOS_DB,
    Answer,
    Mixture,
    Transcript,
    error_change,
    error_rate,
    evaluate_connected,
    fixed_mixtures,
    latencies,
    noisy,
    read_log,
    spoken_mixtures,
)
from recipes.protocols.scenes import Placed, Recordings
from speech import Listener, Recognizer
from speech.bundle import BLANK, UNKNOWN
from speech.errors import ConfigError, DataError
from speech.listen import DEMO
from speech.model import export
from speech.sound.files import read

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
    assert results["validation"]["val/commands"] > 0.15  # a network that says nothing has 0


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


LOG = "yes no\nleft right go\nup\nstop stop\n\n" * 6


def test_evaluation_prints_draws_and_writes(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, target = tmp_path / "log.txt", tmp_path / "new/figures.json"
    log.write_text(LOG)
    arguments = ["--model", str(run / "smoke.onnx"), "--data.root", str(root), "--language-model", str(log)]
    out = ["--json", str(target), "--report", str(tmp_path / "page")]
    assert evaluate.main([*arguments, "--protocol", "connected", "twelve", *out]) == 0
    printed, figures = capsys.readouterr().out, json.loads(target.read_text())
    rows = figures["connected"]["rows"]
    readers = ["whole", "live", "whole + log", "live + log"]
    assert [(row["snr_db"], row["reader"]) for row in rows] == [(ratio, r) for ratio in RATIOS_DB for r in readers]
    assert [t["said"] for t in rows[0]["transcripts"]] == [["yes", "no"]] * 6
    for row in rows:
        assert row["error_rate"]["value"] == row["errors"] / row["commands"]
        assert row["cpu_ms"] > 0
        assert f"{100 * row['error_rate']['value']:6.2f} %" in printed
    assert list(figures["connected"]["changes"])[:2] == ["clean, whole + log", "clean, live + log"]
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("data:image/png") == 3
    assert "whole + log" in page
    assert figures["twelve"]["accuracy"]["total"] == 12


def test_a_bundle_of_single_words_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--data.root", str(root), "--protocol", "connected"]) == 1
    assert "sequences need head 'ctc'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wrong"), [("yes\nno\n", "2 lines; expected at least 4"), ("yes\nno\ngo\nmaybe\n", "'maybe'")]
)
def test_a_log_that_is_no_use_is_reported(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(ConfigError, match=wrong):
        read_log(tmp_path / "log.txt", KEYWORDS)


def test_lines_of_a_log_are_either_said_or_counted(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("up down\n" + "yes no\n" * 3)
    model, said = read_log(tmp_path / "log.txt", KEYWORDS)
    assert said == [["up", "down"]]
    assert model.log_prob(("yes",), "no") > -0.7
    assert model.log_prob(("up",), "down") == model.log_prob(("up",), "left")


@pytest.mark.parametrize("part", ["validation", "testing"])
def test_fixed_mixtures_keep_to_their_part_and_sizes(recordings: Recordings, part: str) -> None:
    mixtures, again = (fixed_mixtures(recordings, part, 30, KEYWORDS, seed=0) for _ in range(2))
    for mixture, same in zip(mixtures, again, strict=True):
        assert mixture.placed == same.placed
        np.testing.assert_array_equal(mixture.waveform, same.waveform)
    assert {len(m.placed) for m in mixtures} == {1, 2, 3, 4, 5, 6}
    assert {p.word for m in mixtures for p in m.placed} == set(KEYWORDS)
    for mixture in mixtures:
        assert mixture.placed[0].start_s >= 0.3
        assert mixture.placed[-1].end_s <= len(mixture.waveform) / RATE - 0.7
        gaps = [b.start_s - a.end_s for a, b in zip(mixture.placed, mixture.placed[1:], strict=False)]
        assert all(0.1 <= gap <= 0.8 + 0.2 for gap in gaps)  # up to 80 ms of each clip's own margin
        for placed in mixture.placed:
            sound = mixture.waveform[round(placed.start_s * RATE) : round(placed.end_s * RATE)]
            assert np.sqrt(np.square(sound).mean()) > 0.03


def test_spoken_mixtures_say_the_sentences(recordings: Recordings) -> None:
    sentences = [("yes",), ("no", "up", "no"), ("go", "stop")] * 3
    mixtures, again = (spoken_mixtures(recordings, "validation", sentences, seed=3) for _ in range(2))
    assert [m.transcript for m in mixtures] == sentences
    for mixture, same in zip(mixtures, again, strict=True):
        np.testing.assert_array_equal(mixture.waveform, same.waveform)
    with pytest.raises(DataError, match="no recording of 'seven'"):
        spoken_mixtures(recordings, "validation", [("seven",)], seed=0)


def test_noise_comes_at_the_ratio(recordings: Recordings) -> None:
    part = next(part for part in PARTS if len(recordings.select(part, "noise")))
    mixtures = fixed_mixtures(recordings, part, 5, KEYWORDS, seed=0)
    clean, mixed = (noisy(mixtures, recordings, part, snr_db) for snr_db in (None, 10.0))
    added = np.concatenate(mixed) - np.concatenate(clean)
    assert 20 * np.log10(np.sqrt(np.square(added).mean())) == pytest.approx(-36, abs=0.5)


def test_errors_are_substitutions_deletions_and_insertions() -> None:
    transcripts = [
        Transcript(("yes", "no"), ("yes",)),
        Transcript(("go",), ("up",)),
        Transcript(("go", "go"), ("go", "up", "go")),
    ]
    assert [t.errors for t in transcripts] == [1, 1, 1]
    rng = np.random.default_rng(0)
    for _ in range(200):
        said, found = (tuple(rng.choice(KEYWORDS[:3], n).tolist()) for n in rng.integers(0, 7, 2))
        assert Transcript(said, found).errors == edit_distance(said, found)
    assert error_rate(transcripts).value == pytest.approx(3 / 5)
    many = error_rate([Transcript(("yes",), ("up",) * 7)] * 10)
    assert (many.value, many.high) == (7, 7), "more errors than commands"


def test_an_interval_covers_correlated_errors() -> None:
    rng, said, covered = np.random.default_rng(0), ("yes", "no", "go"), 0
    for _ in range(60):
        rate = error_rate([Transcript(said, said + n * ("up",)) for n in rng.poisson(0.9, 80)])
        covered += rate.low <= 0.3 <= rate.high
    assert covered >= 51  # 95 % of 60 is 57
    right = error_rate([Transcript(said, said)] * 10)
    assert (right.value, right.low) == (0, pytest.approx(0))
    assert right.high == pytest.approx(Share(0, 30).interval[1]), "no errors in a sample are not none at all"


def test_a_change_is_paired() -> None:
    said = ("yes", "no", "go")
    some = [Transcript(said, said + n * ("up",)) for n in np.random.default_rng(0).poisson(2, 60)]
    same, more = error_change(some, some), error_change([replace(t, found=(*t.found, "up")) for t in some], some)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert (more.low, more.high) == pytest.approx((1 / 3, 1 / 3))


def test_latency_counts_from_the_last_word_before_the_decision() -> None:
    placed = (Placed("go", 0.5, 0.9), Placed("go", 1.5, 1.9), Placed("up", 2.9, 3.2))
    mixture = Mixture(np.zeros(RATE, np.float32), placed)
    assert latencies(mixture, [2.2, 2.2]) == [0.3]
    assert latencies(mixture, [2.2, 2.2, 3.6]) == [0.3, 0.4]
    assert latencies(mixture, [0.4]) == [], "nothing was said before it"


def test_all_readers_hear_the_same(recordings: Recordings, sequence_bundle: Path) -> None:
    heard: dict[str, list[np.ndarray]] = {"deaf": [], "as it is": []}

    def reader(name: str) -> Callable[[np.ndarray], Answer]:
        return lambda waveform: heard[name].append(waveform) or Answer([])

    others = {name: reader(name) for name in heard}
    silent = Recognizer.load(sequence_bundle)
    commands = silent.info.words
    spoken = Recordings([replace(r, word=commands[len(r.word) % 2]) for r in recordings.recordings])
    result = evaluate_connected(silent, spoken, "validation", 4, commands, others=others)
    assert [r.reader for r in result.rows[:4]] == ["whole", "live", "deaf", "as it is"]
    assert all(r.transcripts[0].errors == len(r.transcripts[0].said) for r in result.rows if r.reader == "deaf")
    for a, b in zip(*heard.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_pocketsphinx_is_given() -> None:
    assert "(yes | no)+;" in jsgf(["yes", "no"])
    probabilities = [10 ** float(line.split()[0]) for line in arpa(KEYWORDS).splitlines() if line.startswith("-1.")]
    assert len(probabilities) == 11
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    dictionary = "on AA N\non(2) AO N\nonce W AH N S\nno N OW\n"
    assert excerpt(dictionary, ["on", "yes"]) == "on AA N\non(2) AO N\n"


def test_pocketsphinx_hears_what_is_said_in_the_demo() -> None:
    """Synthetic voices, a noise among them: not all of it, but in this order."""
    pytest.importorskip("pocketsphinx", reason="uv sync --group bench")
    start = read(DEMO, RATE)[: 5 * RATE]
    readers = pocketsphinx_readers(KEYWORDS)
    assert len(readers) == 3
    for reader in readers.values():
        found = reader(start).words
        assert set(found) <= set(KEYWORDS)
        assert found[:3] == ["yes", "no", "up"]


def test_missing_pocketsphinx_is_reported_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(against_pocketsphinx, "find_spec", lambda _: None)
    arguments = ["--data.root", str(root), "--model", "connected", "--protocol", "connected", "--pocketsphinx"]
    assert evaluate.main(arguments) == 1
    reported = capsys.readouterr().err
    assert "uv sync --group bench" in reported
    assert reported.count("\n") == 1
