"""The examples, with the demo recording in the microphone's place."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sound_room import DEADLINE_S, Lines, Room, needs_sound

from speech import listen

EXAMPLES = Path(__file__).parents[1] / "examples"
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


def run(script: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that it prints."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=EXAMPLES, env=os.environ | environment, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["asynchronous.py", "robot.py", "window.py"]


def test_a_robot_obeys() -> None:
    assert run("robot.py", str(listen.DEMO)) == [
        "left: wheels at -0.5 +0.5",
        "right: wheels at +0.5 -0.5",
        "stop: wheels at +0.0 +0.0",
        "go: wheels at +1.0 +1.0",
    ]


def test_words_come_beside_other_work() -> None:
    lines = run("asynchronous.py", str(listen.DEMO))
    assert "0 s" in lines
    assert [line.split(" (")[0] for line in lines if "(" in line] == SPOKEN


@needs_sound
def test_a_robot_obeys_what_is_played_and_ends_with_an_interrupt(room: Room) -> None:
    with subprocess.Popen(
        [sys.executable, "robot.py"],
        cwd=EXAMPLES, env=room.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        lines = Lines(process.stdout)
        for _ in range(5):  # it does not say when it is ready
            room.play(listen.DEMO)
            if any("go: " in line for line in lines.now()):
                break
        lines.until("go: wheels at +1.0 +1.0")
        process.send_signal(2)
        assert process.wait(DEADLINE_S) == 0


@pytest.fixture
def display() -> Iterator[str]:
    """A display of our own, or the one that is there."""
    pytest.importorskip("tkinter")
    if shutil.which("Xvfb"):
        reading, writing = os.pipe()
        with subprocess.Popen(
            ["Xvfb", "-displayfd", str(writing), "-screen", "0", "640x480x24"],
            pass_fds=[writing], stderr=subprocess.DEVNULL,
        ) as server:  # fmt: skip
            os.close(writing)
            with os.fdopen(reading) as numbers:
                yield f":{numbers.readline().strip()}"
            server.terminate()
    elif os.environ.get("DISPLAY"):
        yield os.environ["DISPLAY"]
    else:
        pytest.skip("no display, and no Xvfb to make one")


def test_a_window_shows_every_word_and_pauses(display: str, tmp_path: Path) -> None:
    script = tmp_path / "watch.py"
    script.write_text(
        f"""
import sys, threading
sys.path.insert(0, {str(EXAMPLES)!r})
from window import RATE_HZ, Window, read_blocks

begin = threading.Event()

def blocks():
    begin.wait()
    yield from read_blocks(sys.argv[1], RATE_HZ)

window = Window(blocks())
window.word.trace_add("write", lambda *_: print(window.word.get()))
for text in ("Listen", "Pause"):
    window.button.invoke()
    assert window.button["text"] == text
begin.set()
window.mainloop()
"""
    )
    assert run(str(script), str(listen.DEMO), DISPLAY=display) == SPOKEN
