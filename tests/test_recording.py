"""What is kept of what was heard."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Done

from speech import listen
from speech.errors import ConfigError
from speech.recorder import LEAD_S, Recorder
from speech.results import Detection, Reason, Rejection

RATE = 16000
BEGAN = datetime(2026, 11, 22, 15, 45, 1)


def stream(seconds: float) -> np.ndarray:
    """Samples that tell where they are from."""
    return (np.arange(round(seconds * RATE)) / (100 * RATE)).astype(np.float32)


def heard(start_s: float = 2.0, word: str = "left") -> Detection:
    return Detection(word, start_s, start_s + 0.4, 0.93, start_s + 0.6)


def rejected(word: str = "left") -> Rejection:
    return Rejection(Reason.UNSURE, word, 2.0, 2.4, 0.93, 2.6)


@pytest.fixture
def reported() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, reported: list[str]) -> Recorder:
    return Recorder(tmp_path / "a" / "b", RATE, {"model": "m"}, reported.append, BEGAN)


def kept(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_audio_goes_from_before_the_word_to_its_decision(recorder: Recorder, tmp_path: Path) -> None:
    for block in np.array_split(stream(30), 777):
        recorder.feed(block)
    recorder.keep(heard(28.34), 0.5)
    folder = tmp_path / "a" / "b"
    name = "20261122-154501_000028.34_left_0.93"
    assert kept(folder) == [f"{name}.json", f"{name}.wav"]
    assert soundfile.info(folder / f"{name}.wav").subtype == "PCM_16"
    samples, rate = soundfile.read(folder / f"{name}.wav")
    expected = stream(30)[round((28.34 - LEAD_S) * RATE) : round(28.94 * RATE)]
    assert rate == RATE
    np.testing.assert_allclose(samples, expected, atol=2**-15)
    assert json.loads((folder / f"{name}.json").read_text()) == {
        "word": "left", "start_s": 28.34, "end_s": 28.74, "confidence": 0.93, "at_s": 28.94,
        "kind": "detection", "threshold": 0.5, "model": "m",
    }  # fmt: skip


def test_a_rejection_is_kept_with_its_reason(recorder: Recorder, tmp_path: Path) -> None:
    recorder.feed(stream(4))
    recorder.keep(rejected(), None)
    (path,) = (tmp_path / "a" / "b").glob("*_left_0.93_rejected.json")
    assert json.loads(path.read_text()) == {
        "reason": "unsure", "word": "left", "start_s": 2.0, "end_s": 2.4, "confidence": 0.93, "at_s": 2.6,
        "kind": "rejection", "threshold": None, "model": "m",
    }  # fmt: skip


def test_at_the_beginning_there_is_less_before_the_word(recorder: Recorder, tmp_path: Path) -> None:
    recorder.feed(stream(9))
    recorder.reset()
    recorder.feed(stream(1))
    recorder.keep(heard(0.2), 0.5)
    (path,) = (tmp_path / "a" / "b").glob("*.wav")
    assert soundfile.info(path).frames == round(0.8 * RATE)


def test_nothing_is_overwritten_and_names_are_names(recorder: Recorder, tmp_path: Path) -> None:
    recorder.feed(stream(4))
    for word in ("left", "left", "left", "../a b"):
        recorder.keep(rejected(word), 0.5)
    names = [name.removeprefix("20261122-154501_000002.00_") for name in kept(tmp_path / "a" / "b")]
    assert [name for name in names if name.endswith(".wav")] == [
        "___a_b_0.93_rejected.wav", "left_0.93_rejected.wav", "left_0.93_rejected_2.wav", "left_0.93_rejected_3.wav",
    ]  # fmt: skip
    assert len(names) == 8


def test_the_memory_does_not_grow(recorder: Recorder) -> None:
    for _ in range(1000):
        recorder.feed(np.zeros(RATE, np.float32))
    assert sum(map(len, recorder._blocks)) <= 13 * RATE
    n_blocks = len(recorder._blocks)
    for _ in range(1000):
        recorder.feed(np.zeros(0, np.float32))
    assert len(recorder._blocks) == n_blocks, "the microphone is away"


@pytest.mark.parametrize("fails", ["write_bytes", "rename"])
def test_a_failure_is_reported_once_and_leaves_nothing_behind(
    recorder: Recorder, tmp_path: Path, reported: list[str], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    recorder.feed(stream(4))
    recorder.keep(heard(1), 0.5)
    whole, calls = getattr(Path, fails), 0

    def second_fails(path: Path, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            if fails == "write_bytes":
                whole(path, b"half")
            raise OSError(28, "No space left on device")
        whole(path, *arguments)

    monkeypatch.setattr(Path, fails, second_fails)
    recorder.keep(heard(2), 0.5)
    recorder.keep(heard(3), 0.5)
    folder = tmp_path / "a" / "b"
    assert reported == [f"recording stopped: {folder}: No space left on device"]
    assert len(kept(folder)) == 2


def test_a_folder_that_can_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder", Path("/proc/kept")):
        with pytest.raises(ConfigError, match="^" + re.escape(f"can't record to {folder}: ")):
            Recorder(folder, RATE, {}, print)


# From here on: the program.


@pytest.fixture
def run(run_listen: Callable[..., Done]) -> Callable[..., Done]:
    return lambda *arguments: run_listen("--json", "--file", listen.DEMO, *arguments)


def test_every_word_is_kept_as_it_was_heard(run: Callable[..., Done], tmp_path: Path) -> None:
    printed = run("--record", tmp_path).found
    described = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    found = [d for d in described if d["kind"] == "detection"]
    assert len(printed) == 10
    assert [d["word"] for d in found] == [p["word"] for p in printed]
    assert {d["source"] for d in found} == {str(listen.DEMO)}
    assert all(d["confidence"] >= d["threshold"] for d in found)
    whole, _ = soundfile.read(listen.DEMO)
    for path, p in zip([q for q in sorted(tmp_path.glob("*.wav")) if "rejected" not in q.name], printed, strict=True):
        samples, _ = soundfile.read(path)
        begin = round((p["start_s"] - LEAD_S) * RATE)
        np.testing.assert_allclose(samples, whole[max(0, begin) :][: len(samples)], atol=2**-14)
        assert len(samples) == pytest.approx(round(p["at_s"] * RATE) - max(0, begin), abs=16)


def test_what_may_have_been_a_command_is_kept_with_its_reason(run: Callable[..., Done], tmp_path: Path) -> None:
    assert run("--record", tmp_path, "--threshold", "1", "--words", "yes,no").out == ""
    described = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [d["word"] for d in described] == ["yes", "no"], "what nobody asked for, and talk, is not"
    for d in described:
        assert (d["kind"], d["reason"], d["threshold"], d["model"]) == ("rejection", "unsure", 1.0, "commands")
        assert 0.8 <= d["confidence"] < 1
    assert [path.name.endswith("_rejected.wav") for path in tmp_path.glob("*.wav")] == [True, True]


def test_a_command_after_talk_is_kept_with_its_reason(run_listen: Callable[..., Done], tmp_path: Path) -> None:
    samples, rate = soundfile.read(listen.DEMO)
    path, folder = tmp_path / "talk.wav", tmp_path / "kept"
    soundfile.write(path, np.concatenate([samples[-4 * rate :], samples[: 2 * rate]]), rate)
    run_listen("--file", path, "--record", folder)
    (found,) = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert (found["word"], found["reason"], found["kind"]) == ("yes", "after talk", "rejection")


def test_an_unwritable_folder_ends_in_one_clear_line(run: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("--record", tmp_path / "file")
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: can't record to {tmp_path / 'file'}: ")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk can't be mounted here (needs root on Linux)")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_the_recording_and_not_the_listening(run: Callable[..., Done], small_disk: Path) -> None:
    done = run("--record", small_disk)
    assert done.status == 0
    assert len(done.out.splitlines()) == 10
    lines = [line for line in done.err.splitlines() if "recording" in line]
    assert lines == [f"recording stopped: {small_disk}: No space left on device"]
    names = kept(small_disk)
    assert 0 < len(names) < 20
    assert not [name for name in names if name.endswith(".part")]
    assert {Path(name).stem for name in names if name.endswith(".wav")} == {
        Path(name).stem for name in names if name.endswith(".json")
    }
    for path in small_disk.glob("*.wav"):
        assert soundfile.info(path).frames > RATE / 2


def test_a_folder_that_vanishes_ends_the_recording_and_not_the_listening(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    command = [sys.executable, "-m", "speech.listen", "--record", str(folder), "--stdin"]
    samples = (soundfile.read(listen.DEMO, dtype="int16")[0]).astype("<i2").tobytes()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin
        assert process.stderr
        assert b"listening" in process.stderr.readline()
        folder.rmdir()
        out, errors = process.communicate(samples, timeout=30)
    assert process.returncode == 0
    assert len(out.splitlines()) == 10
    assert errors.decode().splitlines()[0] == f"recording stopped: {folder}: No such file or directory"
