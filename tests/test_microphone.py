"""The microphone against a real sound server: PulseAudio with a null sink, reached through ALSA by PortAudio.

Skipped where pulseaudio, paplay or ALSA's pulse plugin are not installed; CI installs them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech import listen

PROGRAMS = ("pulseaudio", "paplay", "pactl")
MISSING = [program for program in PROGRAMS if not shutil.which(program)]
pytestmark = [
    pytest.mark.sound_server,
    pytest.mark.skipif(bool(MISSING), reason=f"no sound server: {', '.join(MISSING)} not installed"),
]
SINK = "room"


@pytest.fixture(scope="module")
def sound_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which the default input device is the monitor of a sink that nobody hears."""
    home = tmp_path_factory.mktemp("sound")
    (home / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
    socket = home / "socket"
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("DISPLAY", "DBUS_SESSION_BUS_ADDRESS")},
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "PULSE_SERVER": f"unix:{socket}",
        "PULSE_SINK": SINK,
        "PULSE_SOURCE": f"{SINK}.monitor",
    }
    modules = [
        f"--load=module-native-protocol-unix auth-anonymous=1 socket={socket}",
        f"--load=module-null-sink sink_name={SINK} rate=48000 channels=2",
    ]
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", *modules]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_for(lambda: SINK in output(["pactl", "list", "short", "sinks"], environment))
        yield environment
        server.terminate()


def output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30).stdout


def wait_for(condition: object, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def listening(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "speech.listen", "--json", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    assert "listening on" in (line := process.stderr.readline()), line
    return process


def play(path: Path, environment: dict[str, str]) -> None:
    subprocess.run(["paplay", str(path)], env=environment, check=True, timeout=60)


def finish(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    process.terminate()
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "heard" in errors
    return [json.loads(line) for line in out.splitlines()]


def test_what_is_played_is_printed_and_agrees_with_the_file(sound_server: dict[str, str]) -> None:
    process = listening(sound_server)
    play(listen.DEMO, sound_server)
    time.sleep(1)
    live = finish(process)
    command = [sys.executable, "-m", "speech.listen", "--json", "--file", str(listen.DEMO)]
    from_file = [json.loads(line) for line in output(command, sound_server).splitlines()]
    assert [d["word"] for d in live] == [d["word"] for d in from_file]
    offsets = [a["start_s"] - b["start_s"] for a, b in zip(live, from_file, strict=True)]  # type: ignore[operator]
    assert max(offsets) - min(offsets) < 0.1


def test_the_devices_are_listed_for_people_and_programs(sound_server: dict[str, str]) -> None:
    command = [sys.executable, "-m", "speech.listen", "--list-devices"]
    lines = output(command, sound_server).splitlines()
    devices = [json.loads(line) for line in output([*command, "--json"], sound_server).splitlines()]
    assert len(lines) == len(devices) > 0
    assert sum(d["is_default"] for d in devices) == 1
    assert any("default" in line and line.startswith("*") for line in lines)


def test_a_device_is_chosen_by_name_or_number(sound_server: dict[str, str]) -> None:
    listed = output([sys.executable, "-m", "speech.listen", "--list-devices", "--json"], sound_server)
    default = next(d for d in map(json.loads, listed.splitlines()) if d["is_default"])
    for choice in (default["name"], str(default["number"])):
        process = listening(sound_server, "--device", choice, "--seconds", "0.5")
        out, errors = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, ""), errors


def test_an_unknown_device_ends_in_one_clear_line(sound_server: dict[str, str]) -> None:
    for choice in ("no such device", "99"):
        command = [sys.executable, "-m", "speech.listen", "--device", choice]
        done = subprocess.run(command, env=sound_server, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "no input device for" in done.stderr.splitlines()[-1]
        assert "--list-devices" in done.stderr


def test_a_device_that_disappears_is_told(sound_server: dict[str, str]) -> None:
    process = listening(sound_server)
    modules = output(["pactl", "list", "short", "modules"], sound_server)
    number = next(line.split()[0] for line in modules.splitlines() if "module-null-sink" in line)
    subprocess.run(["pactl", "unload-module", number], env=sound_server, check=True)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        sink = ["pactl", "load-module", "module-null-sink", f"sink_name={SINK}", "rate=48000", "channels=2"]
        subprocess.run(sink, env=sound_server, check=True, stdout=subprocess.DEVNULL)
    assert process.returncode == 1
    assert "stopped delivering audio" in errors
    assert "Traceback" not in errors
