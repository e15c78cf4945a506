"""The microphone: against a fake PortAudio, and against a real sound server.

The real one is PulseAudio with a null sink whose monitor is the default input, reached through ALSA by PortAudio.  Its
tests are skipped where pulseaudio, paplay or pactl are not installed; CI installs them.
"""

import json
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
import soundfile

from speech import listen, microphone
from speech.errors import DeviceError
from speech.microphone import Microphone

RATE = 16000


class FakePortAudio:
    """As much of sounddevice as is used; `devices` may change, but is seen only after a restart."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.devices = [self.device("Built-in", 16000), self.device("USB Mic: Audio (hw:1,0)", 16000)]
        self.default = SimpleNamespace(device=[0, 0])
        self.streams: list[SimpleNamespace] = []
        self.refusal: Exception | None = None
        self.channels_refused: tuple[int, ...] = ()
        self._initialized = 1
        self._seen = list(self.devices)

    @staticmethod
    def device(name: str, rate: float, channels: int = 1) -> dict[str, Any]:
        return {"name": name, "max_input_channels": channels, "default_samplerate": rate}

    def query_devices(self) -> list[dict[str, Any]]:
        return self._seen

    def _terminate(self) -> None:
        assert all(stream.closed for stream in self.streams), "PortAudio ends with a stream open"
        self._initialized -= 1

    def _initialize(self) -> None:
        self._initialized += 1
        self._seen = list(self.devices)

    def InputStream(self, **options: Any) -> SimpleNamespace:
        if self.refusal or options["channels"] in self.channels_refused:
            raise self.refusal or self.PortAudioError("Invalid number of channels", -9998)
        stream = SimpleNamespace(closed=False, start=lambda: None, **options)

        def close(ignore_errors: bool) -> None:
            stream.closed = True

        stream.close = close
        self.streams.append(stream)
        return stream

    def deliver(self, n_blocks: int = 1, overflow: bool = False, value: float = 0.25) -> None:
        stream = self.streams[-1]
        samples = np.full((stream.blocksize, stream.channels), value, np.float32)
        for _ in range(n_blocks):
            stream.callback(samples, len(samples), None, SimpleNamespace(input_overflow=overflow))


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    fake = FakePortAudio()
    monkeypatch.setattr(microphone, "sounddevice", lambda: fake)
    monkeypatch.setattr(microphone, "POLL_S", 0.01)
    monkeypatch.setattr(microphone, "RETRY_S", 0.02)
    monkeypatch.setattr(microphone, "PATIENCE_S", 0.3)
    return fake


@pytest.fixture
def told() -> list[str]:
    return []


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_device_that_went_away_is_taken_up_again_by_name(portaudio: FakePortAudio, told: list[str]) -> None:
    with Microphone(1, tell=told.append) as mic:
        blocks = mic.blocks(RATE)
        portaudio.deliver(2)
        assert [len(next(blocks)) for _ in range(2)] == [640, 640]
        unplugged = portaudio.devices.pop()
        portaudio.streams[-1].finished_callback()
        assert not len(next(blocks)), "while it is waited for, empty blocks come"
        assert told == ["'USB Mic: Audio (hw:1,0)' stopped delivering audio; waiting for it"]
        time.sleep(0.1)
        assert len(portaudio.streams) == 1, "the other device is not taken instead"
        portaudio.devices = [
            portaudio.device("New", 8000),
            *portaudio.devices,
            unplugged | {"name": "USB Mic: Audio (hw:7,0)", "default_samplerate": 32000.0},
        ]
        wait_for(lambda: len(portaudio.streams) == 2)
        assert not len(next(blocks)), "it counts as back when it delivers"
        portaudio.deliver(25)
        gap = next(block for block in blocks if len(block))
        assert (len(gap), gap.any()) == (RATE * microphone.GAP_S, False)
        assert told[1:] == ["'USB Mic: Audio (hw:7,0)' is back, at 32000 Hz"]
        assert portaudio.streams[-1].device == 2
        heard = np.zeros(0, np.float32)
        while len(heard) < 15 * 640:  # the resampler gathers some blocks
            heard = np.append(heard, next(blocks))
        np.testing.assert_allclose(heard[-640:], 0.25, atol=0.01)
    assert mic.overflows == 0
    assert portaudio.streams[-1].closed


def test_without_a_wish_the_default_device_of_then_is_taken(portaudio: FakePortAudio, told: list[str]) -> None:
    with Microphone(tell=told.append) as mic:
        blocks = mic.blocks(RATE)
        portaudio.default.device = [1, 0]
        assert not len(next(blocks)), "nothing came for PATIENCE_S"
        wait_for(lambda: len(portaudio.streams) == 2)
        portaudio.deliver()
        next(block for block in blocks if len(block))
        assert mic.device.name.startswith("USB")
    assert len(told) == 2


def test_one_that_opens_but_stays_silent_is_not_back(portaudio: FakePortAudio, told: list[str]) -> None:
    with Microphone(tell=told.append) as mic:
        blocks = mic.blocks(RATE)
        wait_for(lambda: not len(next(blocks)) and len(portaudio.streams) == 3)
        assert len(told) == 1
        assert [stream.closed for stream in portaudio.streams] == [True, True, False]


def test_without_reconnecting_it_is_an_error(portaudio: FakePortAudio, told: list[str]) -> None:
    with Microphone(reconnect=False, tell=told.append) as mic, pytest.raises(DeviceError, match="unplugged"):
        next(mic.blocks(RATE))
    assert told == []


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("Error opening InputStream: Device unavailable", -9985), "another program may hold it"),
        (("Unanticipated host error", -9999, (8, -16, "Device or resource busy")), "busy; another program may hold it"),
        (("Unanticipated host error", -9999, (8, -13, "Permission denied")), "denied; allow this program"),
        (("Invalid sample rate", -9997), "Invalid sample rate; --list-devices shows the others"),
    ],
)
def test_a_device_that_can_not_be_opened_says_what_to_do(
    portaudio: FakePortAudio, arguments: tuple[object, ...], advice: str
) -> None:
    portaudio.refusal = portaudio.PortAudioError(*arguments)
    with pytest.raises(DeviceError, match=r"^can't record from 'Built-in': ") as refused, Microphone():
        pass
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_device_says_what_to_do(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    portaudio._seen = []
    monkeypatch.setattr(microphone.glob, "glob", lambda _: [])
    with (
        pytest.raises(DeviceError, match=r"plug in a microphone or start the sound server, or use --file or --stdin"),
        Microphone(),
    ):
        pass
    monkeypatch.setattr(microphone.glob, "glob", lambda _: ["/dev/snd/pcmC0D0c"])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DeviceError, match="usermod -aG audio"), Microphone():
        pass


def test_hardware_that_refuses_mono_is_opened_in_stereo(portaudio: FakePortAudio) -> None:
    portaudio._seen = [portaudio.device("Interface", 16000, channels=8)]
    portaudio.channels_refused = (1,)
    with Microphone() as mic:
        portaudio.deliver()
        assert next(mic.blocks(RATE)).shape == (640,)
    assert portaudio.streams[-1].channels == 2


def test_a_sound_system_that_hangs_holds_up_neither_the_start_nor_the_end(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(microphone, "OPEN_S", 0.1)
    monkeypatch.setattr(microphone, "CLOSE_S", 0.1)
    monkeypatch.setattr(portaudio, "query_devices", lambda: hanging.wait(20))
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="does not answer"), Microphone():
        pass
    monkeypatch.undo()
    hanging.set()
    assert time.monotonic() - begin < 5


class Clock:
    """Feeds a loss watch with blocks that come when a test says so."""

    def __init__(self, told: list[str]) -> None:
        self.losses = microphone._Losses(told.append)
        self.stream = SimpleNamespace(device=SimpleNamespace(sample_rate_hz=RATE), n_overflows=0, n_dropped=0)
        self.losses.watch(self.stream)  # type: ignore[arg-type]
        self.now_s, self.n_frames = 100.0, 0

    def run(self, seconds: float, speed: float = 1.0) -> None:
        """Blocks of audio that take `1 / speed` of their length to come."""
        for _ in range(round(seconds / microphone.BLOCK_S)):
            self.n_frames += round(microphone.BLOCK_S * RATE)
            self.now_s += microphone.BLOCK_S / speed
            self.losses.check(self.now_s, self.n_frames)


def test_the_clock_finds_what_nobody_tells(told: list[str]) -> None:
    clock = Clock(told)
    clock.run(10)
    clock.now_s += 30  # the laptop was asleep
    clock.run(10)
    assert clock.losses.n_times == 1
    assert clock.losses.lost_s == pytest.approx(30, abs=0.1)
    assert told == ["warning: audio was lost, 1 times so far, 30.0 s in all: the machine is too busy or slept"]


@pytest.mark.parametrize("speed", [0.999, 1.001])
def test_a_drifting_or_late_device_has_lost_nothing(told: list[str], speed: float) -> None:
    clock = Clock(told)
    for extra_s in np.arange(0, 2.4, 0.2):
        clock.run(60 + extra_s, speed)
        clock.now_s += 6  # the process slept, the sound server kept what came
        clock.run(6, speed=1000)
    assert (clock.losses.n_times, told) == (0, [])


def test_what_is_lost_is_told_at_once_and_then_now_and_then(told: list[str]) -> None:
    clock = Clock(told)
    clock.run(1)
    for _ in range(12):
        clock.stream.n_overflows += 1
        clock.run(2)
        if len(told) == 1:
            assert told == ["warning: audio was lost, 1 times so far: the machine is too busy or slept"]
    assert len(told) == 3, "24 s: at once, after 10 s, after 20 s"
    clock.stream.n_dropped += 3 * RATE
    clock.run(12)
    assert "13 times so far, 3.0 s in all" in told[-1]


def test_the_clock_does_not_count_again_what_the_driver_told(told: list[str]) -> None:
    clock = Clock(told)
    clock.run(5)
    clock.now_s += 3
    clock.stream.n_overflows += 1
    clock.run(10)
    assert clock.losses.n_times == 1
    assert clock.losses.lost_s == pytest.approx(3, abs=0.1)


def test_a_backlog_that_is_full_drops_and_counts_once(portaudio: FakePortAudio, told: list[str]) -> None:
    with Microphone(tell=told.append) as mic:
        portaudio.deliver(round(15 / microphone.BLOCK_S))
        blocks = mic.blocks(RATE)
        assert sum(len(next(blocks)) for _ in range(250)) == microphone.BACKLOG_S * RATE
    assert mic.overflows == 1
    assert told == ["warning: audio was lost, 1 times so far, 5.0 s in all: the machine is too busy or slept"]


# From here on: a real sound server.

MISSING = [program for program in ("pulseaudio", "paplay", "pactl") if not shutil.which(program)]
SINK = "room"


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
            self.server.wait(10)
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
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30).stdout

    def play(self, path: Path) -> None:
        subprocess.run(["paplay", str(path)], env=self.environment, check=True, timeout=60)


@pytest.fixture(scope="module")
def shared_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(tmp_path_factory.mktemp("sound"))
    yield room
    room.kill()


@pytest.fixture
def room(shared_room: Room) -> Room:
    shared_room.ready()
    return shared_room


def beginning(folder: Path, seconds: float) -> Path:
    samples, rate = soundfile.read(listen.DEMO)
    path = folder / f"first {seconds} s.wav"
    soundfile.write(path, samples[: round(seconds * rate)], rate)
    return path


@pytest.fixture
def yes_no(tmp_path: Path) -> Path:
    """The first two words of the demo."""
    return beginning(tmp_path, 3.1)


class Lines:
    """What a pipe has brought so far."""

    def __init__(self, pipe: IO[str]) -> None:
        self.seen: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [self._queue.put(line) for line in pipe], daemon=True).start()

    def until(self, text: str, seconds: float = 20, n: int = 1) -> str:
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

    def __init__(self, room: Room, *arguments: str, program: tuple[str, ...] = ("-m", "speech.listen")) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program, "--json", *arguments],
            env=room.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stderr
        self.out, self.errors = Lines(self.process.stdout), Lines(self.process.stderr)
        self.started = self.errors.until("listening on")

    def __enter__(self) -> "Listening":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> str:
        """Its summary, after SIGTERM."""
        self.process.terminate()
        summary = self.errors.until("heard")
        assert self.process.wait(10) == 0
        assert not any("Traceback" in line for line in self.errors.seen)
        return summary

    @property
    def words(self) -> list[str]:
        return [json.loads(line)["word"] for line in self.out.seen]


@needs_sound
def test_what_is_played_is_printed_and_agrees_with_the_file(room: Room) -> None:
    with Listening(room) as listening:
        assert listening.started.startswith("listening on default at 44100 Hz"), "resampled from the device's own rate"
        room.play(listen.DEMO)
        listening.out.until('"off"')
        assert "10 commands, 0 overflows" in listening.end()
        live = [json.loads(line) for line in listening.out.seen]
    command = [sys.executable, "-m", "speech.listen", "--json", "--file", str(listen.DEMO)]
    from_file = [json.loads(line) for line in room.output(command).splitlines()]
    assert len(live) == 10
    assert [d["word"] for d in live] == [d["word"] for d in from_file]
    for key in ("start_s", "end_s"):
        offsets = [a[key] - b[key] for a, b in zip(live, from_file, strict=True)]
        assert max(abs(offset - statistics.median(offsets)) for offset in offsets) <= 0.05, (key, offsets)


@needs_sound
def test_the_devices_are_listed_for_people_and_programs(room: Room) -> None:
    command = [sys.executable, "-m", "speech.listen", "--list-devices"]
    lines = room.output(command).splitlines()
    devices = [json.loads(line) for line in room.output([*command, "--json"]).splitlines()]
    assert len(lines) == len(devices) > 0
    assert sum(d["is_default"] for d in devices) == 1
    assert any("default" in line and line.startswith("*") for line in lines)
    default = next(d for d in devices if d["is_default"])
    for choice in (default["name"], str(default["number"])):
        with Listening(room, "--device", choice, "--seconds", "0.5") as listening:
            assert listening.errors.until("heard") == "heard 0.5 s, 0 commands, 0 overflows"
            assert listening.process.wait(10) == 0


@needs_sound
@pytest.mark.parametrize("choice", ["no such device", "99"])
def test_an_unknown_device_ends_in_one_clear_line(room: Room, choice: str) -> None:
    command = [sys.executable, "-m", "speech.listen", "--device", choice]
    done = subprocess.run(command, env=room.environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "no input device for" in done.stderr.splitlines()[-1]
    assert "--list-devices" in done.stderr


@needs_sound
def test_a_device_that_comes_back_is_listened_to_again(room: Room, yes_no: Path) -> None:
    with Listening(room) as listening:
        room.play(yes_no)
        listening.out.until("no")
        room.remove_sink()
        listening.errors.until("'default' stopped delivering audio; waiting for it")
        time.sleep(2.5)  # some looks in vain
        room.add_sink()
        listening.errors.until("'default' is back, at 44100 Hz")
        room.play(yes_no)
        listening.out.until("no", n=2)
        assert "4 commands" in listening.end()
        assert listening.words == ["yes", "no"] * 2
        lines = [line for line in listening.errors.seen if "default" in line]
        assert len(lines) == 3, "listening, lost, back"
        assert not [line for line in listening.errors.seen if "Unable to create stream" in line], "looks are silent"


@needs_sound
def test_a_sound_server_that_dies_and_comes_back_is_listened_to_again(room: Room, yes_no: Path) -> None:
    with Listening(room) as listening:
        room.kill()
        listening.errors.until("'default' stopped delivering audio; waiting for it")
        time.sleep(1.5)
        assert listening.process.poll() is None
        room.start()
        listening.errors.until("'default' is back, at 44100 Hz")
        room.play(yes_no)
        listening.out.until("no")
        assert "2 commands" in listening.end()
        assert listening.words == ["yes", "no"]


@needs_sound
@pytest.mark.parametrize("ending", ["SIGTERM", "--seconds"])
def test_it_ends_while_it_waits_for_a_hanging_sound_server(room: Room, ending: str) -> None:
    limit = ("--seconds", "4") if ending == "--seconds" else ()
    with Listening(room, *limit) as listening:
        assert room.server
        room.server.send_signal(signal.SIGSTOP)
        try:
            listening.errors.until("waiting for it")
            if not limit:
                time.sleep(0.5)
                listening.process.send_signal(getattr(signal, ending))
            assert listening.process.wait(8) == 0
            assert listening.errors.until("heard").endswith("0 commands, 0 overflows")
        finally:
            room.server.send_signal(signal.SIGCONT)
            room.kill()


@needs_sound
def test_a_device_that_disappears_ends_it_where_that_is_wanted(room: Room) -> None:
    with Listening(room, "--no-reconnect") as listening:
        room.remove_sink()
        assert listening.process.wait(20) == 1
        listening.errors.until("error: 'default' stopped delivering audio: was it unplugged?")
        assert not any("Traceback" in line for line in listening.errors.seen)


@needs_sound
def test_a_process_that_slept_tells_what_it_missed_and_goes_on(room: Room, yes_no: Path) -> None:
    script = "import sys; from speech import listen, microphone; microphone.BACKLOG_S = 1; sys.exit(listen.main())"
    with Listening(room, program=("-c", script)) as listening:
        time.sleep(0.5)
        listening.process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        listening.process.send_signal(signal.SIGCONT)
        warning = listening.errors.until("warning: audio was lost")
        assert "1 times so far" in warning
        assert listening.process.poll() is None, "told while it runs"
        room.play(yes_no)
        listening.out.until("no")
        assert "2 commands, 1 overflows" in listening.end()
        assert listening.words == ["yes", "no"]


@needs_sound
def test_actions_that_hang_fail_and_flood_do_not_disturb_the_words(room: Room, tmp_path: Path) -> None:
    actions, note = tmp_path / "actions.toml", tmp_path / "note"
    actions.write_text(
        f"""
        [defaults]
        timeout_s = 3
        [yes]
        run = ["sleep", "1000"]
        [no]
        run = ["sh", "-c", "echo broken >&2; exit 7"]
        [up]
        run = ["yes"]
        [left]
        shell = true
        run = "echo $SPEECH_WORD > '{note}'"
        """
    )
    with Listening(room, "--actions", str(actions)) as listening:
        room.play(beginning(tmp_path, 6.5))
        listening.out.until("left")
        wait_for(note.exists)
        for line in ("yes: killed after 3 s", "no: exit status 7: broken", "up: killed after 3 s"):
            listening.errors.until(f"action {line}")
        assert "5 commands, 0 overflows" in listening.end()
        assert listening.words == ["yes", "no", "up", "down", "left"]
    assert note.read_text().strip() == "left"


@needs_sound
def test_a_microphone_is_recorded(room: Room, tmp_path: Path, yes_no: Path) -> None:
    with Listening(room, "--record", str(tmp_path / "kept")) as listening:
        room.play(yes_no)
        listening.out.until('"no"')
        listening.end()
    kept = sorted((tmp_path / "kept").glob("*.json"))
    found = [json.loads(path.read_text()) for path in kept]
    assert [f["word"] for f in found if f["kind"] == "detection"] == ["yes", "no"]
    assert {f["source"] for f in found} == {"default"}
    for path in kept:
        samples, rate = soundfile.read(path.with_suffix(".wav"))
        assert rate == RATE
        assert np.abs(samples).max() > 0.02
