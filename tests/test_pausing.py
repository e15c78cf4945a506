"""Pausing: nothing that comes between pause and resume is heard."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Done
from sound_room import DEADLINE_S, Lines

from speech import Detection, Listener, Recognizer, listen
from speech.console import Console
from speech.errors import ConfigError
from speech.pausing import Pauser
from speech.session import ListeningSession

RATE = 16000
recognizer = cache(Recognizer.load)
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    return soundfile.read(listen.DEMO, dtype="float32")[0]


@pytest.fixture(scope="module")
def heard(demo: np.ndarray) -> list[Detection]:
    """What the demo holds when nothing pauses."""
    found = list(Listener(recognizer()).listen([demo]))
    assert [d.word for d in found] == SPOKEN
    return found


def hear(listener: Listener, demo: np.ndarray, begin_s: float, end_s: float) -> list[Detection]:
    """The demo in small blocks, with a pause from one time to the other."""
    found: list[Detection] = []
    listener.reset()
    for n, block in enumerate(np.array_split(demo, len(demo) // 400)):
        if (now_s := n * 0.025) >= begin_s and not listener.is_paused and now_s < end_s:
            listener.pause()
        if now_s >= end_s:
            listener.resume()
        found += listener.feed(block)
    return found + listener.flush()


@pytest.mark.parametrize("first", [0, 3, 9])
def test_what_is_said_in_a_pause_is_not_heard_and_time_runs_on(
    demo: np.ndarray, heard: list[Detection], first: int
) -> None:
    last = min(first + 2, len(heard))
    begin_s, end_s = heard[first].start_s - 0.2, heard[last - 1].end_s + 0.2
    found = hear(Listener(recognizer()), demo, begin_s, end_s)
    rest = heard[:first] + heard[last:]
    assert [d.word for d in found] == [d.word for d in rest]
    for ours, theirs in zip(found, rest, strict=True):
        assert ours.start_s == pytest.approx(theirs.start_s, abs=0.05)
        assert ours.at_s == pytest.approx(theirs.at_s, abs=0.07)


def test_no_word_is_made_of_a_half(demo: np.ndarray, heard: list[Detection]) -> None:
    """A pause that begins or ends within a word takes all of it, and leaves no trace in callbacks."""
    reported: list[float] = []
    listener = Listener(
        recognizer(),
        on_rejection=lambda r: reported.append(r.start_s),
        on_utterance=lambda e: reported.append(e.start_s),
    )
    left = heard[4]
    middle_s = (left.start_s + left.end_s) / 2
    for begin_s, end_s in ((middle_s, left.end_s + 0.2), (middle_s, middle_s + 0.05), (left.start_s - 0.2, middle_s)):
        reported.clear()
        found = hear(listener, demo, begin_s, end_s)
        assert "left" not in [d.word for d in found]
        assert len(found) == 9
        if begin_s == middle_s:
            assert not [t for t in reported if left.start_s - 0.5 < t < left.end_s]


def test_a_pause_outlives_a_new_stream(demo: np.ndarray) -> None:
    listener = Listener(recognizer())
    listener.pause()
    assert list(listener.listen([demo])) == []
    assert listener.is_paused
    listener.resume()
    assert len(list(listener.listen([demo]))) == 10


class Source:
    """Blocks whose samples tell when they were captured, and which wait to be read."""

    def __init__(self) -> None:
        self.n_discarded = 0

    def discard(self) -> None:
        self.n_discarded += 1


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def pauser(source: Source) -> Pauser:
    return Pauser(Listener(recognizer()), source.discard)


ONE = np.ones(400, np.float32)


def test_what_was_captured_in_a_pause_is_silenced_when_it_is_read_later(pauser: Pauser, source: Source) -> None:
    assert pauser.let_through(ONE).all()
    pauser.pause()
    assert not pauser.let_through(ONE).any()
    pauser.resume()
    assert not pauser.let_through(ONE).any(), "it was captured before"
    assert source.n_discarded == 1
    assert pauser.let_through(ONE).all()


def test_a_pause_between_two_blocks_counts(pauser: Pauser, source: Source) -> None:
    """A callback that pauses, speaks and resumes runs between two blocks."""
    pauser.pause()
    pauser.resume()
    assert not pauser.let_through(ONE).any()
    assert source.n_discarded == 1
    assert pauser.let_through(ONE).all()
    assert source.n_discarded == 1


def test_a_file_pauses_as_long_as_it_exists(tmp_path: Path) -> None:
    changes: list[bool] = []
    pauser = Pauser(Listener(recognizer()), path=tmp_path / "speaking", changed=changes.append)
    assert pauser.let_through(ONE).all()
    (tmp_path / "speaking").touch()
    pauser.resume()
    assert [pauser.let_through(ONE).any() for _ in range(3)] == [False] * 3
    (tmp_path / "speaking").unlink()
    assert [pauser.let_through(ONE).any() for _ in range(3)] == [False, True, True]
    pauser.toggle()
    assert not pauser.let_through(ONE).any()
    pauser.toggle()
    assert [pauser.let_through(ONE).any() for _ in range(2)] == [False, True]
    assert changes == [True, False, True, False]


def test_a_file_that_can_not_be_looked_for_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop/speaking", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=re.escape(f"{path}: ")):
            Pauser(Listener(recognizer()), path=path)
    (tmp_path / "file").touch()
    assert not Pauser(Listener(recognizer()), path=tmp_path / "file/speaking").is_paused


def raw(demo: np.ndarray) -> bytes:
    return (demo * 32767).astype("<i2").tobytes()


def test_the_program_hears_nothing_while_the_file_exists(run_listen: Callable[..., Done], tmp_path: Path) -> None:
    flag = tmp_path / "speaking"
    flag.touch()
    command = ["--json", "--file", listen.DEMO, "--pause-file", flag]
    assert run_listen(*command).words == []
    flag.unlink()
    assert run_listen(*command).words == SPOKEN


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX signals")
def test_a_signal_pauses_the_program_and_another_one_resumes(demo: np.ndarray) -> None:
    pipe, command = subprocess.PIPE, [sys.executable, "-m", "speech.listen", "--json", "--stdin"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin
    assert process.stderr
    errors = Lines(os.fdopen(os.dup(process.stderr.fileno())))
    process.stdin.write(bytes(2 * RATE))
    process.stdin.flush()
    errors.until("listening to")
    for text in ("paused", "listening again"):
        process.send_signal(signal.SIGUSR1)
        process.stdin.write(bytes(2 * RATE))
        process.stdin.flush()
        errors.until(text)
        if text == "paused":
            process.stdin.write(raw(demo))
            process.stdin.flush()
    process.stdin.write(raw(demo[: round(3.1 * RATE)]))
    process.stdin.close()
    assert process.stdout
    assert [json.loads(line)["word"] for line in process.stdout.read().splitlines()] == ["yes", "no"]
    assert process.wait(DEADLINE_S) == 0


def test_what_came_in_a_pause_is_not_recorded_either(tmp_path: Path, demo: np.ndarray) -> None:
    """The audio that is kept before a word may reach back into a pause."""
    arguments = listen.parse(["--record", str(tmp_path), "--demo"])
    session = ListeningSession(arguments, Console(quiet=True))
    heard = list(Listener(recognizer()).listen([demo]))[1]
    begin = round((heard.start_s - 0.25) * RATE)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, begin).astype(np.float32)

    def blocks():  # type: ignore[no-untyped-def]
        session.pauser.pause()
        yield from np.array_split(noise, 100)
        session.pauser.resume()
        yield demo[begin : begin + 1]
        yield from np.array_split(demo[begin + 1 :], 100)

    session._listen(blocks(), "test")
    kept = sorted(tmp_path.glob("*_no_*.wav"))
    samples, _ = soundfile.read(kept[0])
    assert np.abs(samples[: round(0.2 * RATE)]).max() < 0.05
    assert np.abs(samples).max() > 0.1
