import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ten import KEYWORDS

from recipes.data.corpus import Corpus
from recipes.data.mixtures import fixed_mixtures
from recipes.protocols import against_pocketsphinx
from recipes.protocols.against_pocketsphinx import (
    OURS,
    SEARCHES,
    Result,
    Timed,
    arpa,
    compare,
    error_ratio,
    excerpt,
    jsgf,
    pcm,
)
from recipes.protocols.connected import Heard
from speech.errors import DataError
from speech.listen import DEMO
from speech.sound.files import read

needs_pocketsphinx = pytest.mark.skipif(
    find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed: uv sync --group bench"
)


def result(name: str, errors: Sequence[int], cpu_s: float = 1.0) -> Result:
    """Each mixture says three words and hears so many more."""
    said = ("yes", "no", "go")
    return Result(name, [Heard(said, said + n * ("up",), 0.2) for n in errors], cpu_s, 10.0)


def test_both_hear_the_same_and_are_counted_alike(corpus: Corpus) -> None:
    mixtures = {len(m.waveform): m.transcript for m in fixed_mixtures(corpus, "validation", 12, KEYWORDS, seed=0)}
    heard: dict[str, list[np.ndarray]] = {"exact": [], "forgetful": []}

    def exact(waveform: np.ndarray) -> Sequence[str]:
        heard["exact"].append(waveform)
        return mixtures[len(waveform)]

    def forgetful(waveform: np.ndarray) -> Sequence[str]:
        heard["forgetful"].append(waveform)
        return mixtures[len(waveform)][1:]

    comparison = compare(exact, {"deaf": lambda _: [], "forgetful": forgetful}, corpus, "validation", 12, KEYWORDS)
    assert [c.snr_db for c in comparison.conditions] == [None, 10.0]
    for condition in comparison.conditions:
        assert condition.ours.name == OURS
        assert condition.ours.error_rate.value == 0
        assert condition.others[0].error_rate.value == 1
        total = sum(len(words) for words in mixtures.values())
        assert condition.others[1].error_rate.value == pytest.approx(12 / total)
        assert condition.best.name == "forgetful"
        assert f"12/{total}" in str(comparison)
    for a, b in zip(heard["exact"], heard["forgetful"], strict=True):
        np.testing.assert_array_equal(a, b)
    clean, noisy = heard["exact"][:12], heard["exact"][12:]
    assert not any(np.array_equal(a, b) for a, b in zip(clean, noisy, strict=True))


def test_an_interval_covers_and_may_lie_over_one() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        rate = result("x", rng.poisson(0.3 * 3, 80).tolist()).error_rate
        covered += rate.low <= 0.3 <= rate.high
    assert covered >= 51  # 95 % of 60 is 57
    many = result("x", [6] * 10).error_rate
    assert (many.value, many.low, many.high) == (2, 2, 2)


def test_the_ratio_is_paired() -> None:
    errors = np.random.default_rng(0).poisson(2, 60)
    same = error_ratio(result("a", errors.tolist()), result("b", errors.tolist()))
    assert (same.value, same.low, same.high) == (1, 1, 1)
    half = error_ratio(result("a", errors.tolist()), result("b", (2 * errors).tolist()))
    assert half.value == pytest.approx(0.5, abs=0.01)
    assert half.high - half.low < 0.01, "the same draws for both"
    none = error_ratio(result("a", [0] * 5), result("b", [0] * 5))
    assert none.value == 1


def test_only_the_decoding_is_timed() -> None:
    def busy(_: np.ndarray) -> Sequence[str]:
        return [str(sum(range(10**6)))]

    timed = Timed(busy)
    sum(range(10**7))
    assert timed.cpu_s == 0
    timed(np.zeros(1, np.float32))
    once = timed.cpu_s
    timed(np.zeros(1, np.float32))
    assert timed.cpu_s > once > 0
    assert result("x", [0], cpu_s=2.5).load == 0.25


def test_what_pocketsphinx_is_given() -> None:
    samples = np.frombuffer(pcm(np.array([0, 0.5, -1, 1, 2], np.float32)), "<i2")
    assert samples.tolist() == [0, 16384, -32768, 32767, 32767]
    assert "(yes | no)+;" in jsgf(["yes", "no"])
    probabilities = [10 ** float(line.split()[0]) for line in arpa(KEYWORDS).splitlines() if line.startswith("-1.")]
    assert len(probabilities) == 11
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    dictionary = "on AA N\non(2) AO N\nonce W AH N S\nno N OW\n"
    assert excerpt(dictionary, ["on", "yes"]) == "on AA N\non(2) AO N\n"


@needs_pocketsphinx
@pytest.mark.parametrize("search", SEARCHES)
def test_pocketsphinx_hears_what_is_said_in_the_demo(search: str) -> None:
    """Synthetic voices, a noise among them: not all of it, but in this order."""
    start = read(DEMO, 16000)[: 5 * 16000]
    found = against_pocketsphinx.pocketsphinx(KEYWORDS, search)(start)
    assert set(found) <= set(KEYWORDS)
    assert found[:3] == ["yes", "no", "up"]


def test_missing_pocketsphinx_and_wrong_bundles_are_reported_in_one_line(
    root: Path, tone_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(against_pocketsphinx, "find_spec", lambda _: None)
    assert against_pocketsphinx.main(["--data.root", str(root)]) == 1
    reported = capsys.readouterr().err
    assert "uv sync --group bench" in reported
    assert reported.count("\n") == 1
    monkeypatch.setattr(against_pocketsphinx, "find_spec", lambda name: name)
    assert against_pocketsphinx.main(["--data.root", str(root), "--model", str(tone_bundle)]) == 1
    assert "recognises single words" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        against_pocketsphinx.main(["--data.root", str(root), "--n", "0"])


def test_missing_commands_are_reported(corpus: Corpus, tmp_path: Path) -> None:
    few = Corpus([r for r in corpus.recordings if r.word != "left"], tmp_path)
    with pytest.raises(DataError, match="all commands"):
        compare(lambda _: [], {"deaf": lambda _: []}, few, "validation", 2, KEYWORDS)


@needs_pocketsphinx
def test_the_command_prints_and_writes_all_figures(
    root: Path, sequence_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "pocketsphinx.json"
    arguments = ["--data.root", str(root), "--model", str(sequence_bundle), "--n", "2", "--json", str(target)]
    assert against_pocketsphinx.main([*arguments, "--held-out", "0"]) == 0
    printed = capsys.readouterr().out
    assert all(search in printed for search in SEARCHES)
    written = json.loads(target.read_text())
    assert written["part"] == "validation"
    for condition in written["conditions"]:
        loads = {r["name"]: r["load"] for r in condition["results"]}
        assert min(loads.values()) > 0
        assert condition["cpu_ratio"] == pytest.approx(loads[OURS] / loads[condition["best_other"]])
