"""A real sound server: PulseAudio with a null sink whose monitor is the default input, by way of ALSA to PortAudio.

Tests with it are skipped where pulseaudio, paplay or pactl are not installed; CI installs them.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

DEADLINE_S = 60.0
"""How long a machine with other things to do gets for what takes a moment; nothing waits so long unless it fails."""
ATTEMPTS, ANSWER_S, SETTLE_S = 3, 15.0, 1.0
"""How often a recording is played at most, how long its words are waited for, and then further ones."""
MISSING = [program for program in ("pulseaudio", "paplay", "pactl") if not shutil.which(program)]
SINK = "room"


def wait_for(condition: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def needs_sound(test: Any) -> Any:
    skip = pytest.mark.skipif(bool(MISSING), reason=f"no sound server: {', '.join(MISSING)} not installed")
    return pytest.mark.sound_server(skip(test))


class Room:
    """A sound server with one sink, whose monitor is the default input device."""

    def __init__(self, home: Path) -> None:
        (home / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self.socket = home / "socket"
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in ("DISPLAY", "DBUS_SESSION_BUS_ADDRESS")},
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PULSE_SERVER": f"unix:{self.socket}",
            "PULSE_SINK": SINK,
            "PULSE_SOURCE": f"{SINK}.monitor",
            "OMP_NUM_THREADS": "1",
        }
        self.server: subprocess.Popen[bytes] | None = None

    def ready(self) -> None:
        if not self.server:
            self.start()
        if not self._has_sink():
            self.add_sink()

    def start(self) -> None:
        protocol = f"--load=module-native-protocol-unix auth-anonymous=1 socket={self.socket}"
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", protocol]
        null = subprocess.DEVNULL
        self.server = subprocess.Popen(command, env=self.environment, stdout=null, stderr=null)
        wait_for(lambda: "module-native" in self.control("list", "short", "modules"))
        self.add_sink()

    def kill(self) -> None:
        if self.server:
            self.server.kill()
            self.server.wait(DEADLINE_S)
        self.server = None

    def add_sink(self) -> None:
        self.control("load-module", "module-null-sink", f"sink_name={SINK}", "rate=48000", "channels=2")
        wait_for(self._has_sink)

    def remove_sink(self) -> None:
        self.control("unload-module", "module-null-sink")

    def _has_sink(self) -> bool:
        return SINK in self.control("list", "short", "sinks")

    def control(self, *arguments: str) -> str:
        return self.output(["pactl", *arguments])

    def output(self, command: list[str]) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S).stdout

    def play(self, path: Path) -> None:
        """Play a recording to its end, every channel of it to the sink's channel of that number."""
        # with so much in advance that a paplay which gets no time leaves no gap
        subprocess.run(
            ["paplay", "--latency-msec=4000", str(path)], env=self.environment, check=True, timeout=DEADLINE_S
        )


class Lines:
    """What a pipe has brought so far."""

    def __init__(self, pipe: IO[str]) -> None:
        self.seen: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [self._queue.put(line) for line in pipe], daemon=True).start()

    def now(self) -> list[str]:
        """The lines that have come, without waiting."""
        while not self._queue.empty():
            self.seen.append(self._queue.get())
        return self.seen

    def until(self, text: str, seconds: float = DEADLINE_S, n: int = 1) -> str:
        """The n-th line with that text among all, waited for."""
        end = time.monotonic() + seconds
        while len(found := [line for line in self.seen if text in line]) < n:
            try:
                self.seen.append(self._queue.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"{text!r} did not come in {seconds} s; there is {self.seen}") from None
        return found[-1].rstrip()


class Listening:
    """`speech-listen` as a user runs it, from where it says that it listens."""

    def __init__(
        self,
        room: Room,
        *arguments: str,
        program: tuple[str, ...] = ("-m", "speech.listen"),
        from_line: str = "listening on",
    ) -> None:
        self.room = room
        self.process = subprocess.Popen(
            [sys.executable, *program, "--json", *arguments],
            env=room.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stderr
        self.out, self.errors = Lines(self.process.stdout), Lines(self.process.stderr)
        self.started = self.errors.until(from_line)

    def __enter__(self) -> "Listening":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def end(self) -> str:
        """Its summary, after SIGTERM."""
        self.process.terminate()
        summary = self.errors.until("heard")
        assert self.process.wait(DEADLINE_S) == 0
        assert not any("Traceback" in line for line in self.errors.seen)
        return summary

    def hear(self, path: Path, *words: str) -> None:
        """Play a recording until these words, and no others, are printed for it.

        A starved machine loses audio on its way: then it is played again.
        """
        for attempt in range(ATTEMPTS):
            n_lines = len(self.out.now())
            self.room.play(path)
            if words:
                with suppress(AssertionError):
                    self.out.until("", seconds=ANSWER_S, n=n_lines + len(words))
            time.sleep(SETTLE_S)
            found = [json.loads(line)["word"] for line in self.out.now()[n_lines:]]
            if found == list(words):
                return
            print(f"attempt {attempt}: {found}; {self.errors.now()}")
        raise AssertionError(f"{words} were played {ATTEMPTS} times, and {found} was heard the last time")
