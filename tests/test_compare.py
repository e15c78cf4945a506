import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from recipes import compare, train
from recipes.compare import Variant, cell, clock, read_variants, run_folder, table
from recipes.metrics import Share
from speech.errors import ConfigError

SMOKE = "recipes/configs/smoke.yaml"


def train_here(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Train in this process, which has imported the training stack already."""
    assert command[:3] == [sys.executable, "-m", "recipes.train"]
    return subprocess.CompletedProcess(command, train.main(list(command[3:])))


def test_variants_are_trained_alike_and_compared(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", train_here)
    variants = tmp_path / "variants.yaml"
    variants.write_text("as it is: {}\nsmall: {model.network.hidden: 4}\n")
    out = tmp_path / "out"
    arguments = [str(variants), "--config", SMOKE, "--epochs", "1", "--out", str(out)]
    assert compare.main([*arguments, "--data.root", str(root), "--data.steps", "2"]) == 0
    printed = (out / "comparison.md").read_text()
    assert capsys.readouterr().out.endswith(printed)
    first, second = json.loads((out / "comparison.json").read_text())
    assert (first["name"], second["settings"]) == ("as it is", {"model.network.hidden": 4})
    assert first["epochs"] == second["epochs"] == 1
    for variant in (first, second):
        assert variant["figures"]["keywords"]["total"] == 30
        assert cell(variant["figures"]["keywords"]) in printed
    configs = [next((run_folder(out, name)).glob("curves-*/config.yaml")).read_text() for name in ("as it is", "small")]
    assert ["hidden: 4\n" in config for config in configs] == [False, True]
    assert all("steps: 2\n" in config for config in configs), "what is not of a variant goes to all"


def test_a_variant_that_fails_is_reported_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho called: $*\ncase $* in *hidden=0*) exit 1;; esac\n"
        "while [ $1 != --run ]; do shift; done\n"
        """echo '{"epoch": 2, "figures": {"score": 0.5}}' > $2/validation.json\n"""
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    variants, out = tmp_path / "variants.yaml", tmp_path / "out"
    variants.write_text("good: {}\nwrong: {model.network.hidden: 0}\nfine: {model.network.hidden: 2}\n")
    arguments = [str(variants), "--config", SMOKE, "--parallel", "2", "--out", str(out)]
    assert compare.main([*arguments, "--data.root", "toy"]) == 1
    printed, reported = capsys.readouterr()
    log = out / "wrong/log.txt"
    assert reported == f"error: training of wrong failed, see {log}\n"
    assert "called: -m recipes.train" in log.read_text()
    assert [line.split(" | ")[0] for line in printed.splitlines()] == ["| variant", "| ---", "| good", "| fine"]
    assert (out / "comparison.md").read_text() == printed
    assert [v["name"] for v in json.loads((out / "comparison.json").read_text())] == ["good", "fine"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "base: 3\n", "base: {a: [\n"])
def test_what_is_no_list_of_variants_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "variants.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"variants\.yaml"):
        read_variants(path)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        read_variants(tmp_path / "missing.yaml")


def test_the_table_has_intervals_and_leaves_out_what_nobody_has() -> None:
    share = Share(95, 100).as_dict()
    text = table([Variant("a", {}, 3, {"keywords": share, "score": 0.912}), Variant("b", {"x": 1}, 3, {})])
    lines = text.splitlines()
    assert lines[0] == "| variant | settings | epochs | score | keywords |"
    assert lines[2] == "| a | as the config | 3 | 91.20 | 95.0 [88.8, 97.8] |"
    assert lines[3] == "| b | `x: 1` | 3 | - | - |"


def test_minutes_are_written_as_the_trainer_wants_them() -> None:
    assert [clock(m) for m in (0.5, 12, 90)] == ["00:00:30", "00:12:00", "01:30:00"]
