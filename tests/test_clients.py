"""The measurement of the server's clients, at a small size."""

import re
from pathlib import Path

import pytest
import soundfile

from recipes.protocols import clients
from speech.listen import DEMO
from speech.settings import user_folder
from speech.sound.files import read


def test_a_limit_that_is_missed_is_named_and_the_users_own_words_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    damaged = user_folder("data") / "own/word-lamp/word.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")  # a notice on stderr
    assert damaged.is_relative_to(tmp_path)
    soundfile.write(tmp_path / "three.wav", read(DEMO, 16000)[: 5 * 16000], 16000)
    monkeypatch.setattr(clients, "DEMO", tmp_path / "three.wav")
    monkeypatch.setattr(clients, "MOST_MS", -1.0)
    assert clients.main(["--clients", "2"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.startswith("FAILED: latency") for line in printed] == [True, False, False]
    assert "(limit -1 ms)" in printed[0]
    assert re.fullmatch(r"2 clients at once: (\d+) of \1 words", printed[1])
