"""What detections set off, and that nothing of it disturbs the loop."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from speech import actions as module
from speech.actions import Action, Actions
from speech.errors import ConfigError
from speech.results import Detection

WORDS = ("left", "right", "stop")
posix = pytest.mark.skipif(os.name != "posix", reason="process groups and sh are POSIX")


def heard(word: str = "left", at_s: float = 2.0, confidence: float = 0.95) -> Detection:
    return Detection(word, at_s - 0.5, at_s - 0.1, confidence, at_s)


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


DEADLINE_S = 60.0
"""What hangs in these tests does so for longer; a busy machine needs less."""


def wait_for(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that init has yet to reap does not."""
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def pids(path: Path, n: int) -> list[int]:
    """The process numbers that a script writes, once all are there."""
    wait_for(lambda: path.exists() and len(path.read_text().split()) == n)
    return [int(pid) for pid in path.read_text().split()]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.15)


@pytest.fixture
def reported() -> list[str]:
    return []


def test_a_file_runs_commands_that_know_the_detection(
    tmp_path: Path, reported: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "note.py"
    script.write_text(
        "import os, sys; print('out'); print('err', file=sys.stderr); assert not sys.stdin.read()\n"
        f"text = ' '.join(f'{{k}}={{v}}' for k, v in sorted(os.environ.items()) if k.startswith('SPEECH_'))\n"
        f"open({str(tmp_path / 'left')!r}, 'w').write(text)"
    )
    path = tmp_path / "actions.toml"
    path.write_text(
        "[defaults]\ncooldown_s = 0\ntimeout_s = 20.0\n"
        f"[left]\nrun = [{sys.executable!r}, {str(script)!r}]\n"
        f'[stop]\nrun = "echo $SPEECH_WORD > {tmp_path / "stop"}"\nshell = true\nmin_confidence = 0.9\n'
    )
    with Actions.load(path, WORDS, reported.append) as actions:
        actions(heard("stop", confidence=0.89))
        actions(heard("right"))
        actions(heard("left"))
        actions(heard("stop"))
    assert (tmp_path / "left").read_text() == (
        "SPEECH_CONFIDENCE=0.950 SPEECH_END_S=1.900 SPEECH_START_S=1.500 SPEECH_WORD=left"
    )
    assert (tmp_path / "stop").read_text().strip() == "stop"
    assert reported == []
    out, err = capfd.readouterr()
    assert (out, err) in [("", f"action left: {last}\n") for last in ("out", "err")], "its last line"


@posix
@pytest.mark.parametrize(
    "script",
    [
        "sleep 100 & {note}; wait",
        "trap '' TERM; sleep 100 & {note}; wait; sleep 100",
        "(trap '' TERM; exec sleep 100 >/dev/null 2>&1) & {note}; wait",
    ],
    ids=["plain", "ignores SIGTERM", "its child ignores SIGTERM"],
)
def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, reported: list[str], script: str) -> None:
    note = tmp_path / "pids"
    command = sh(script.format(note=f"echo $! $$ > {note}"))
    with Actions({"left": Action(command, timeout_s=2.0)}, tell=reported.append) as actions:
        begin = time.monotonic()
        actions(heard())
        assert reported == [], "it returns at once"
        child, parent = pids(note, 2)
        assert is_alive(child)
        assert is_alive(parent)
        actions.finish()
        assert reported == ["action left: killed after 2 s"]
        assert time.monotonic() - begin < DEADLINE_S
        wait_for(lambda: not is_alive(child) and not is_alive(parent))


@posix
def test_what_a_command_leaves_behind_with_its_output_belongs_to_it(tmp_path: Path, reported: list[str]) -> None:
    note = tmp_path / "pids"
    with Actions({"left": Action(sh(f"sleep 100 & echo $! > {note}"), timeout_s=2.0)}, tell=reported.append) as actions:
        actions(heard())
    assert reported == ["action left: killed after 2 s"]
    wait_for(lambda: not is_alive(pids(note, 1)[0]))


@posix
def test_one_that_left_the_group_with_the_output_holds_up_nothing(tmp_path: Path, reported: list[str]) -> None:
    note = tmp_path / "pids"
    script = f"import os, time; os.setsid(); open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    command = sh(f'"{sys.executable}" -S -c "{script}" & sleep 100')
    with Actions({"left": Action(command, timeout_s=100)}, tell=reported.append) as actions:
        actions(heard())
        (escaped,) = pids(note, 1)
        begin = time.monotonic()
        actions.close()
    assert time.monotonic() - begin < DEADLINE_S
    assert reported == ["action left: ended early"]
    assert is_alive(escaped)
    os.kill(escaped, signal.SIGKILL)


@posix
def test_a_command_does_not_read_our_standard_input(reported: list[str]) -> None:
    reading, writing = os.pipe()
    ours = os.dup(0)
    try:
        os.dup2(reading, 0)
        os.write(writing, b"audio")
        with Actions(
            {"left": Action(sh('test -z "$(head -c 5)"'), timeout_s=DEADLINE_S)}, tell=reported.append
        ) as actions:
            actions(heard())
    finally:
        os.dup2(ours, 0)
        for number in (ours, reading, writing):
            os.close(number)
    assert reported == []


@posix
@pytest.mark.parametrize(
    ("command", "line"),
    [
        (sh("echo out; echo one >&2; echo two >&2; exit 3"), "exit status 3: two"),
        (sh("echo only out; exit 4"), "exit status 4: only out"),
        (sh("exit 5"), "exit status 5"),
        (sh("kill -9 $$"), "ended by signal 9"),
        (sh(r"printf 'a\033[31m\tb\n\n' >&2; exit 1"), "exit status 1: a [31m b"),
        (("sh", "-c", "\0"), "ValueError: embedded null byte"),
        (sh("printf '%5000s' | tr ' ' x >&2; exit 1"), "exit status 1: ".ljust(module.MESSAGE_LENGTH - 1, "x") + "…"),
    ],
)
def test_a_command_that_fails_is_reported_in_one_line(reported: list[str], command: tuple[str, ...], line: str) -> None:
    with Actions({"left": Action(command)}, tell=reported.append) as actions:
        actions(heard())
    assert reported == [f"action left: {line}"]


@posix
def test_a_program_that_vanishes_later_is_reported(tmp_path: Path, reported: list[str]) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with Actions({"left": Action([str(program)])}, tell=reported.append) as actions:
        program.unlink()
        actions(heard())
    assert len(reported) == 1
    assert reported[0].startswith("action left: FileNotFoundError:")


@posix
def test_a_flood_is_drained_and_not_kept(
    reported: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tails: list[module._Tail] = []
    n_read = 0

    class Tail(module._Tail):
        def start(self) -> None:
            tails.append(self)
            pipe_read = self.pipe.read

            class Counted:
                def read(self, size: int) -> bytes:
                    nonlocal n_read
                    data = pipe_read(size)
                    n_read += len(data)
                    return data

                def __enter__(self) -> None: ...
                def __exit__(self, *_: object) -> None: ...

            self.pipe = Counted()  # type: ignore[assignment]
            super().start()

    monkeypatch.setattr(module, "_Tail", Tail)
    flood = sh("yes good & yes bad >&2")
    with Actions({"left": Action(flood, timeout_s=2.0)}, tell=reported.append) as actions:
        actions(heard())
    assert reported == ["action left: killed after 2 s"]
    assert n_read > 20 * module.TAIL_BYTES
    assert [len(tail.kept) for tail in tails] == [module.TAIL_BYTES]
    assert not any(tail.is_alive() for tail in tails)
    assert capfd.readouterr() == ("", "")


def test_the_cool_down_is_counted_in_audio(reported: list[str]) -> None:
    times: list[float] = []
    with Actions({"left": Action(lambda d: times.append(d.at_s), cooldown_s=1.5)}, tell=reported.append) as actions:

        def hear(at_s: float) -> None:
            actions(heard(at_s=at_s))
            actions.finish()

        for at_s in (2.0, 2.5, 3.49, 3.5, 4.9, 5.0):
            hear(at_s)
        assert times == [2.0, 3.5, 5.0]
        hear(1.0)  # a new stream began
        actions.reset()
        hear(1.2)
        assert times == [2.0, 3.5, 5.0, 1.0, 1.2]
    assert reported == []


def test_the_words_of_one_utterance_run_one_after_another(reported: list[str]) -> None:
    """left left stop: all at the same time, since an utterance is read when it has ended."""
    ran: list[tuple[str, float]] = []

    def run(detection: Detection) -> None:
        time.sleep(0.05)
        ran.append((detection.word, detection.start_s))

    with Actions(dict.fromkeys(WORDS, run), tell=reported.append) as actions:
        for word, start_s in (("left", 1.0), ("left", 1.4), ("stop", 1.8)):
            actions(Detection(word, start_s, start_s + 0.3, 0.9, at_s=2.4))
        actions.finish()
        assert ran == [("left", 1.0), ("left", 1.4), ("stop", 1.8)]
        actions(Detection("stop", 1.9, 2.2, 0.9, at_s=2.4))  # when the others have ended
        actions(Detection("left", 2.6, 2.9, 0.9, at_s=3.2))  # another utterance: in the cool-down
    assert ran[3:] == [("stop", 1.9)]
    assert reported == []


@posix
def test_what_still_runs_is_not_started_again_and_that_is_reported_once(tmp_path: Path, reported: list[str]) -> None:
    note = tmp_path / "note"
    command = sh(f"echo $SPEECH_END_S >> {note}; until test -e {tmp_path / 'go'}; do sleep 0.02; done")
    with Actions({"left": Action(command, cooldown_s=0)}, tell=reported.append) as actions:
        for at_s in (1, 2, 3):
            actions(heard(at_s=at_s))
        assert reported == ["action left: still running, skipped"]
        (tmp_path / "go").touch()
        actions.finish()
        actions(heard(at_s=4))
    assert note.read_text().split() == ["0.900", "3.900"]
    assert len(reported) == 1


@posix
def test_utterances_do_not_wait_for_each_other(tmp_path: Path, reported: list[str]) -> None:
    done = threading.Event()
    with Actions(
        {"left": Action(sh("sleep 100"), timeout_s=100), "right": lambda _: done.set()}, tell=reported.append
    ) as a:
        a(heard("left"))
        a(heard("right", at_s=2.5))
        assert done.wait(DEADLINE_S)
        a.close()
    assert reported == ["action left: ended early"]


@posix
@pytest.mark.parametrize("stubborn", [False, True])
def test_an_exception_ends_what_runs_and_leaves_no_children(
    tmp_path: Path, reported: list[str], stubborn: bool
) -> None:
    note = tmp_path / "pids"
    trap = "trap '' TERM; " if stubborn else ""
    threads = threading.active_count()
    command = sh(f"{trap}sleep 100 & echo $! $$ > {note}; wait; sleep 100")
    actions = Actions({"left": Action(command)}, tell=reported.append)

    def interrupted() -> None:
        with actions:
            actions(heard())
            found.extend(pids(note, 2))
            raise KeyboardInterrupt

    begin, found = time.monotonic(), list[int]()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < DEADLINE_S
    assert reported == ["action left: ended early"]
    wait_for(lambda: not any(map(is_alive, found)))
    with pytest.raises(ChildProcessError):
        os.waitpid(found[1], os.WNOHANG)  # it has been reaped
    assert threading.active_count() == threads
    actions(heard(at_s=9))
    actions.close()
    assert threading.active_count() == threads, "closed means closed"


def test_a_function_that_raises_is_reported(reported: list[str]) -> None:
    def fail(detection: Detection) -> None:
        raise ValueError(f"no {detection.word}\nhere")

    with Actions({"left": fail}, tell=reported.append) as actions:
        actions(heard())
        actions.finish()
        actions(heard(at_s=9))
    assert reported == ["action left: ValueError: no left here"] * 2


def test_a_function_that_hangs_holds_up_neither_the_loop_nor_the_end(reported: list[str]) -> None:
    go = threading.Event()
    actions = Actions({"left": Action(lambda _: go.wait(2 * DEADLINE_S), cooldown_s=0)}, tell=reported.append)
    begin = time.monotonic()
    actions(heard(at_s=1))
    actions(heard(at_s=2))
    actions.close()
    go.set()
    assert time.monotonic() - begin < DEADLINE_S
    assert reported == ["action left: still running, skipped", "action left: does not end, left running"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no action; expected tables like [left]"),
        ("[defaults]\ncooldown_s = 1", "no action; expected tables like [left]"),
        ("left = [", "not valid TOML: "),
        ("\xff", "not UTF-8 from byte 0 on"),
        ("left = 3", "left=3 must be a table"),
        ("[[left]]\nrun = ['sh']", "left=[{'run': ['sh']}] must be a table"),
        ("[lfet]\nrun = ['sh']", "[lfet] is not one of the words: left, right, stop"),
        ("[left]", "[left] lacks run"),
        ("[left]\nrun = ['no-such-program', '1']", "[left] run: no program 'no-such-program'"),
        ("[left]\nrun = ['./no/such/program']", "[left] run: no program './no/such/program'"),
        ("[left]\nrun = ['/']", "[left] run: no program '/'"),
        ("[left]\nrun = []", "[left] run=[] must be a list of strings"),
        ("[left]\nrun = ['sh', 3]", "[left] run=['sh', 3] must be a list of strings"),
        ("[left]\nrun = 3", "[left] run=3 must be a list of strings"),
        ("[left]\nrun = 'echo'", "[left] run='echo' must be a list of arguments, or needs shell = true"),
        ("[left]\nrun = ['sh']\nshell = true", "[left] run=['sh'] must be one string when shell = true"),
        ("[left]\nrun = ' '\nshell = true", "[left] run=' ' must be one string"),
        ("[left]\nrun = 'echo'\nshell = 'yes'", "[left] shell='yes' must be true or false"),
        ("[left]\nrun = ['sh']\ntimeout = 3", "[left] has no key 'timeout'; it takes run, shell, cooldown_s"),
        ("[left]\nrun = ['sh']\ntimeout_s = 0", "[left] timeout_s=0 must be positive"),
        ("[left]\nrun = ['sh']\ntimeout_s = nan", "[left] timeout_s=nan must lie in 0..1000000000"),
        ("[left]\nrun = ['sh']\ntimeout_s = '3'", "[left] timeout_s='3' must be a number"),
        ("[left]\nrun = ['sh']\ncooldown_s = -1", "[left] cooldown_s=-1 must lie in 0..1000000000"),
        ("[left]\nrun = ['sh']\ncooldown_s = true", "[left] cooldown_s=True must be a number"),
        ("[left]\nrun = ['sh']\nmin_confidence = 1.1", "[left] min_confidence=1.1 must lie in 0..1"),
        ("[defaults]\nrun = ['sh']\n[left]", "[defaults] has no key 'run'; it takes cooldown_s"),
        ("[defaults]\ntimeout_s = -2\n[left]\nrun = ['sh']", "[defaults] timeout_s=-2 must lie in 0..1000000000"),
    ],
)
def test_a_wrong_file_is_refused_in_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "actions.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="^" + re.escape(f"{path}: {message}")) as refused:
        Actions.load(path, WORDS)
    assert "\n" not in str(refused.value)


def test_python_actions_are_checked_as_well() -> None:
    with pytest.raises(ConfigError, match=r"\[lfet\] is not one of the words: left, right, stop"):
        Actions({"lfet": print}, WORDS)
    with pytest.raises(ConfigError, match="no program 'no-such-program'"):
        Action(["no-such-program"])
