"""Run an action for each detection: a command from a TOML file, or a Python function.

In Python, `for detection in listener.listen(blocks)` is the simplest way to act on a word.  `Actions` is for a loop
that runs unattended: an action never blocks the audio, and each error is reported in one line.

    [defaults]                            # optional: cooldown_s, timeout_s, min_confidence
    timeout_s = 5

    [left]
    run = ["xdotool", "key", "Left"]      # no shell; paths are relative to the current folder

    [stop]
    run = "echo stop >> log.txt"
    shell = true
    min_confidence = 0.9

A command gets the detection in the environment variables SPEECH_WORD, SPEECH_START_S, SPEECH_END_S and
SPEECH_CONFIDENCE; its standard input is empty, and the last line of its output is shown.  It counts as running until it
has exited and its output is closed, so processes that it started count too.  For a command that keeps running:
`timeout_s = inf`, or `shell = true` and `program >/dev/null 2>&1 &`.

The actions of one utterance, as of "left left stop", run one after another; those of different utterances do not wait
for each other.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from speech import errors
from speech.errors import ConfigError
from speech.results import Detection
from speech.settings import match_keys, read_toml

TAIL_BYTES = 4096
"""Bytes kept from the end of a command's output."""
MESSAGE_LENGTH = 200
"""Longest message, in characters."""
GRACE_S = 0.5
"""Seconds between asking a command to end and killing it."""
POLL_S = 0.02
MOST_S = 10**9
"""Longest time in seconds, other than `inf`."""

Callback = Callable[[Detection], object]


@dataclass(frozen=True)
class Action:
    """The action for a word, and its limits.  Raises ConfigError for a field out of range or a missing program."""

    run: Callback | Sequence[str] | str
    """A command as a list of arguments, or as one string with `shell`; or a function that takes the detection."""
    shell: bool = False
    """Run the command in a shell."""
    cooldown_s: float = 1.0
    """Least time from an action of the word to one of a later utterance, in seconds of audio (`at_s` to `at_s`)."""
    timeout_s: float = 10.0
    """Seconds after which a command and its child processes are killed; `inf`: never.  No effect on functions."""
    min_confidence: float = 0.0
    """Detections with a lower confidence are ignored, 0..1."""

    def __post_init__(self) -> None:
        for field, smallest, largest in (("cooldown_s", 0, MOST_S), ("timeout_s", 0, MOST_S), ("min_confidence", 0, 1)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{field}={value!r} must be a number")
            if not (smallest <= value <= largest or (largest == MOST_S and value == math.inf)):
                raise ConfigError(f"{field}={str(value)[:20]} must lie in {smallest}..{largest}")
        if self.timeout_s == 0:
            raise ConfigError("timeout_s=0 must be positive")
        if not isinstance(self.shell, bool):
            raise ConfigError(f"shell={self.shell!r} must be true or false")
        if not callable(self.run):
            self._check_command(self.run)

    def _check_command(self, run: Any) -> None:
        if self.shell:
            if not isinstance(run, str) or not run.strip():
                raise ConfigError(f"run={run!r} must be one string when shell = true")
        elif isinstance(run, str):
            raise ConfigError(f"run={run!r} must be a list of arguments, or needs shell = true")
        elif not isinstance(run, list | tuple) or not run or not all(isinstance(part, str) for part in run):
            raise ConfigError(f"run={run!r} must be a list of strings, the program first")
        elif not shutil.which(run[0]):
            raise ConfigError(f"run: no program {run[0]!r} that can be executed")


class Actions:
    """Runs the action of a detection: `actions(detection)` returns at once.

    A detection is ignored during the cool-down of its word, unless it belongs to the same utterance.  It is also
    skipped while an action of its word from an earlier utterance is still running, which is reported once.  At the end
    of a `with` block, running actions are waited for; after an exception they are ended.

    Args:
        actions: for each word an Action, or a function, which is called in a separate thread.
        words: all words of the model; default: not checked.
        tell: takes one line about an error, from any thread; default: prints it on stderr.
        inform: takes the last line of a command's output, from any thread; default: prints it on stderr.
    Raises:
        ConfigError: an action for a word that is not among `words`.
    """

    def __init__(
        self,
        actions: Mapping[str, Action | Callback],
        words: Sequence[str] | None = None,
        tell: Callable[[str], None] = errors.tell,
        inform: Callable[[str], None] = errors.tell,
    ) -> None:
        actions = match_keys(actions, words or ())
        for word in actions:
            if words is not None and word not in words:
                raise ConfigError(f"[{word}] is not one of the words: {', '.join(words)}")
        self._actions = {word: a if isinstance(a, Action) else Action(a) for word, a in actions.items()}
        self._tell, self._inform = tell, inform
        self._closing = threading.Event()
        self._runs: dict[str, _Run] = {}  # the last of each word
        self._run: _Run | None = None  # of the last utterance
        self._last_s: dict[str, float] = {}

    @classmethod
    def load(cls, path: str | Path, words: Sequence[str], *callbacks: Callable[[str], None]) -> "Actions":
        """Read and check a TOML file.  Raises ConfigError, which names the file, the table and the key.

        Args:
            callbacks: `tell` and `inform`.
        """
        tables = read_toml(path)
        try:
            return cls(_parse(tables), words, *callbacks)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def __call__(self, detection: Detection) -> None:
        """Run the action of the word, if any.  Call it from one thread only."""
        word = detection.word
        action, last = self._actions.get(word), self._runs.get(word)
        if action is None or detection.confidence < action.min_confidence or self._closing.is_set():
            return
        if 0 < detection.at_s - self._last_s.get(word, -math.inf) < action.cooldown_s:  # 0: the same utterance
            return
        run = self._run if self._run and self._run.at_s == detection.at_s else None
        if last and last is not run and last.is_busy(word):
            if not last.is_reported:
                self._tell(f"action {word}: still running, skipped")
            last.is_reported = True
            return
        self._last_s[word] = detection.at_s
        if run is None or not run.add(action, detection):
            run = self._run = _Run(self._tell, self._inform, self._closing, detection.at_s)
            run.add(action, detection)
        self._runs[word] = run

    def reset(self) -> None:
        """Begin a new stream at time 0: no word is in its cool-down."""
        self._last_s, self._run = {}, None

    def finish(self) -> None:
        """Wait until all running actions have ended, for commands at most their `timeout_s`."""
        for run in self._runs.values():
            run.join()

    def close(self) -> None:
        """End all running actions.  A function can't be ended: if it does not return soon, that is reported."""
        self._closing.set()
        deadline = time.monotonic() + 3 * GRACE_S
        for word, run in self._runs.items():
            run.join(max(0.0, deadline - time.monotonic()))
            if run.is_busy(word):
                self._tell(f"action {word}: does not end, left running")
        self._runs.clear()

    def __enter__(self) -> "Actions":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


class _Run(threading.Thread):
    """Runs the actions of one utterance, one after another; the only owner of their processes."""

    def __init__(
        self, tell: Callable[[str], None], inform: Callable[[str], None], closing: threading.Event, at_s: float
    ) -> None:
        super().__init__(name="actions", daemon=True)
        self._tell, self._inform, self._closing, self.at_s = tell, inform, closing, at_s
        self.is_reported = False  # whether a skipped detection was reported
        self._lock = threading.Lock()
        self._due: list[tuple[Action, Detection]] = []  # the one that runs, and those that wait for it

    def add(self, action: Action, detection: Detection) -> bool:
        """Run this after the others.  Returns False if the last one has ended already."""
        with self._lock:
            if self.ident and not self._due:
                return False
            self._due.append((action, detection))
        if not self.ident:
            self.start()
        return True

    def is_busy(self, word: str) -> bool:
        """Whether an action of this word is running or waiting."""
        with self._lock:
            return any(detection.word == word for _, detection in self._due)

    def run(self) -> None:
        while self._due:
            action, detection = self._due[0]
            tell, text = self._tell, ""
            try:
                if callable(action.run):
                    action.run(detection)
                else:
                    succeeded, text = self._command(action, action.run, detection)
                    tell = self._inform if succeeded else tell
            except Exception as error:  # an action must not end the loop
                text = errors.describe(error)
            if text:
                tell(f"action {detection.word}: {_one_line(text)}")
            with self._lock:
                del self._due[: None if self._closing.is_set() else 1]

    def _command(self, action: Action, command: Sequence[str] | str, detection: Detection) -> tuple[bool, str]:
        """Run a command to its end.  Returns whether it succeeded, and what to say about it."""
        process = subprocess.Popen(
            command,
            shell=action.shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=os.environ | _environment(detection),
            start_new_session=os.name == "posix",  # its own process group: the terminal's Ctrl-C does not reach it
        )
        assert process.stdout
        output = _Tail(process.stdout)

        def is_over() -> bool:  # polled last: until then the system can't reuse the number of the group
            return not output.is_alive() and process.poll() is not None

        deadline = time.monotonic() + action.timeout_s
        while not is_over():
            if self._closing.is_set() or time.monotonic() >= deadline:
                _end(process, is_over)
                return False, "ended early" if self._closing.is_set() else f"killed after {action.timeout_s:g} s"
            self._closing.wait(POLL_S)
        status = process.returncode
        how = f"ended by signal {-status}" if status < 0 else f"exit status {status}" if status else ""
        return not status, ": ".join(filter(None, [how, output.last_line]))


class _Tail(threading.Thread):
    """Drains a pipe and keeps its end, so that a flood neither blocks the command nor fills the memory."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.pipe, self.kept = pipe, b""
        self.start()

    def run(self) -> None:
        with self.pipe:
            while data := self.pipe.read(TAIL_BYTES):
                self.kept = (self.kept + data)[-TAIL_BYTES:]
                time.sleep(0.001)  # limits a flood to some MB/s: the audio needs the processor

    @property
    def last_line(self) -> str:
        lines = self.kept.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _end(process: subprocess.Popen[bytes], is_over: Callable[[], bool]) -> None:
    """Ask the whole process group to end, then kill the rest of it."""
    if sys.platform == "win32":
        process.kill()
        return
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of zombies
            os.killpg(process.pid, kind)
        patience = time.monotonic() + GRACE_S
        while not is_over() and time.monotonic() < patience:
            time.sleep(POLL_S)
    process.poll()  # a process that left the group may still hold the output: it is read until that ends


def _parse(tables: Mapping[str, Any]) -> dict[str, Action | Callback]:
    """The tables of a file -> the action of each word."""
    numbers = ("cooldown_s", "timeout_s", "min_confidence")
    for name, table in tables.items():
        known = numbers if name == "defaults" else ("run", "shell", *numbers)
        if not isinstance(table, dict):
            raise ConfigError(f"{name}={table!r} must be a table: [{name}] with run = [...]")
        for key in table:
            if key not in known:
                raise ConfigError(f"[{name}] has no key {key!r}; it takes {', '.join(known)}")
    defaults = tables.get("defaults", {})
    _action("defaults", {"run": print, **defaults})  # checked separately, so that an error names the right table
    words = [name for name in tables if name != "defaults"]
    if not words:
        raise ConfigError("no action; expected tables like [left] with run = [...]")
    return {word: _action(word, defaults | tables[word]) for word in words}


def _action(table: str, fields: Mapping[str, Any]) -> Action:
    if "run" not in fields:
        raise ConfigError(f"[{table}] lacks run = [...]")
    try:
        return Action(**fields)
    except ConfigError as error:
        raise ConfigError(f"[{table}] {error}") from error


def _environment(detection: Detection) -> dict[str, str]:
    times = {name: f"{getattr(detection, name):.3f}" for name in ("start_s", "end_s", "confidence")}
    return {"SPEECH_WORD": detection.word} | {f"SPEECH_{name.upper()}": value for name, value in times.items()}


def _one_line(text: str) -> str:
    """The text without line ends and control characters, cut to `MESSAGE_LENGTH`."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 1] + "…"
