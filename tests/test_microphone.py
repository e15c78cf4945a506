"""The microphone: against a fake PortAudio, and against a real sound server."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from fake_portaudio import FakePortAudio
from sound_room import DEADLINE_S, SINK, Lines, Listening, Room, needs_sound, wait_for

from speech import listen
from speech.errors import ConfigError, DeviceError
from speech.listen import parse
from speech.sound import devices, microphone
from speech.sound.channels import Channel
from speech.sound.microphone import Microphone

RATE = 16000


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    fake = FakePortAudio()
    for module in (devices, microphone):
        monkeypatch.setattr(module, "sounddevice", lambda: fake)
    monkeypatch.setattr(microphone, "POLL_S", 0.01)
    monkeypatch.setattr(microphone, "RETRY_S", 0.02)
    monkeypatch.setattr(microphone, "PATIENCE_S", 0.3)
    return fake


@pytest.fixture
def reported() -> list[str]:
    return []


def test_a_device_that_went_away_is_taken_up_again_by_name(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(1, tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        portaudio.deliver(2)
        assert [len(next(blocks)) for _ in range(2)] == [640, 640]
        unplugged = portaudio.devices.pop()
        portaudio.streams[-1].finished_callback()
        assert not len(next(blocks)), "while it is waited for, empty blocks come"
        assert reported == ["'USB Mic: Audio (hw:1,0)' stopped delivering audio; waiting for it"]
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
        assert reported[1:] == ["'USB Mic: Audio (hw:7,0)' is back, at 32000 Hz"]
        assert portaudio.streams[-1].device == 2
        heard = np.zeros(0, np.float32)
        while len(heard) < 15 * 640:  # the resampler gathers some blocks
            heard = np.append(heard, next(blocks))
        np.testing.assert_allclose(heard[-640:], 0.25, atol=0.01)
    assert mic.overflows == 0
    assert portaudio.streams[-1].closed


def test_without_a_wish_the_default_device_of_then_is_taken(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        portaudio.default.device = [1, 0]
        assert not len(next(blocks)), "nothing came for PATIENCE_S"
        wait_for(lambda: len(portaudio.streams) == 2)
        portaudio.deliver()
        next(block for block in blocks if len(block))
        assert mic.device.name.startswith("USB")
    assert len(reported) == 2


def test_one_that_opens_but_stays_silent_is_not_back(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        wait_for(lambda: not len(next(blocks)) and len(portaudio.streams) == 3)
        assert len(reported) == 1
        assert [stream.closed for stream in portaudio.streams] == [True, True, False]


def test_without_reconnecting_it_is_an_error(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(reconnect=False, tell=reported.append) as mic, pytest.raises(DeviceError, match="unplugged"):
        next(mic.blocks(RATE))
    assert reported == []


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
    portaudio.devices = portaudio._seen = []
    monkeypatch.setattr(devices.glob, "glob", lambda _: [])
    with (
        pytest.raises(DeviceError, match=r"plug in a microphone or start the sound server, or use --file or --stdin"),
        Microphone(),
    ):
        pass
    monkeypatch.setattr(devices.glob, "glob", lambda _: ["/dev/snd/pcmC0D0c"])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DeviceError, match="usermod -aG audio"), Microphone():
        pass


@pytest.mark.parametrize(
    ("channels", "refused", "channel", "opened"),
    [
        (1, (), "best", 1),
        (2, (), "best", 2),
        (2, (2,), "best", 1),  # some hardware records in mono only
        (6, (), "best", 6),
        (6, (6,), "mix", 2),
        (8, (), 5, 8),
        (8, (8,), 5, 5),
        (32, (), "best", 2),  # a virtual device
        (32, (), 2, 2),
        (32, (2,), "best", 1),
        (32, (), 12, 12),
    ],
)
def test_a_device_is_opened_with_the_channels_that_it_has(
    portaudio: FakePortAudio, channels: int, refused: tuple[int, ...], channel: Channel, opened: int
) -> None:
    portaudio._seen = [portaudio.device("Interface", 16000, channels)]
    portaudio.channels_refused = refused
    with Microphone(channel=channel) as mic:
        portaudio.deliver()
        assert next(mic.blocks(RATE)).shape == (640,)
    assert portaudio.streams[-1].channels == opened


def test_a_channel_that_the_device_lacks_is_refused(portaudio: FakePortAudio) -> None:
    with pytest.raises(DeviceError, match="'Built-in' has 1 channels; channel 2 is wanted"), Microphone(channel=2):
        pass
    with pytest.raises(ConfigError, match="channel=0"):
        Microphone(channel=0)


def test_a_given_channel_is_delivered(portaudio: FakePortAudio) -> None:
    portaudio._seen = [portaudio.device("Array", 16000, 4)]
    with Microphone(channel=3) as mic:
        portaudio.deliver(value=np.arange(4) / 4)
        np.testing.assert_array_equal(next(mic.blocks(RATE)), np.full(640, 0.5))


def test_a_microphone_is_used_once_at_a_time(portaudio: FakePortAudio) -> None:
    mic = Microphone()
    with pytest.raises(DeviceError, match="not open: use it in a `with` statement"):
        mic.blocks(RATE)
    with pytest.raises(DeviceError, match="has not been opened"):
        _ = mic.device
    with mic:
        with pytest.raises(DeviceError, match="open already; use one Microphone for each"), mic:
            pass
        assert not portaudio.streams[-1].closed, "the first use is not disturbed"
        blocks = mic.blocks(RATE)
        portaudio.deliver()
        assert len(next(blocks)) == 640
    assert len(portaudio.streams) == 1
    assert list(blocks) == [], "they end with it"
    assert mic.device.name == "Built-in"


def test_a_second_use_reconnects_as_the_first(portaudio: FakePortAudio, reported: list[str]) -> None:
    mic = Microphone(tell=reported.append)

    def lose_and_find() -> None:
        blocks, n_streams = mic.blocks(RATE), len(portaudio.streams)
        portaudio.streams[-1].finished_callback()
        wait_for(lambda: not len(next(blocks)) and len(portaudio.streams) > n_streams)
        portaudio.deliver()
        assert len(next(block for block in blocks if len(block))) == RATE * microphone.GAP_S

    for _ in range(2):
        reported.clear()
        with mic:
            lose_and_find()
        assert reported == ["'Built-in' stopped delivering audio; waiting for it", "'Built-in' is back, at 16000 Hz"]
    assert all(stream.closed for stream in portaudio.streams)


def test_two_microphones_come_back_together(portaudio: FakePortAudio) -> None:
    """The fake asserts that PortAudio never ends with a stream open."""
    reported: tuple[list[str], list[str]] = ([], [])
    with Microphone(0, tell=reported[0].append) as first, Microphone(1, tell=reported[1].append) as second:
        blocks = first.blocks(RATE), second.blocks(RATE)
        for stream in list(portaudio.streams):
            stream.finished_callback()
        wait_for(lambda: not len(next(blocks[0])) and len(portaudio.streams) == 3)
        portaudio.deliver()
        wait_for(lambda: len(next(blocks[0])))
        wait_for(lambda: not len(next(blocks[1])) and len(portaudio.streams) == 4)
        portaudio.deliver()
        wait_for(lambda: len(next(blocks[1])))
        assert portaudio.n_restarts == 1, "the second one opens without, as the first one is open again"
    assert [lines[-1].split(" is ")[1] for lines in reported] == ["back, at 16000 Hz"] * 2


def test_another_open_stream_is_left_alone_and_that_is_said_once(portaudio: FakePortAudio, reported: list[str]) -> None:
    output = portaudio.OutputStream()
    with Microphone(1, tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        unplugged = portaudio._seen.pop()
        portaudio.devices = [*portaudio._seen, portaudio.device("New", 8000), unplugged]
        portaudio.streams[-1].finished_callback()
        wait_for(lambda: not len(next(blocks)) and len(reported) == 2)
        assert (
            reported[1]
            == "other sound streams of this program are open: a new device is only seen once they are closed"
        )
        time.sleep(0.1)
        assert (portaudio.n_restarts, output.closed, len(reported)) == (0, False, 2)
        output.close()
        wait_for(lambda: len(portaudio.streams) == 2)
        portaudio.deliver()
        wait_for(lambda: len(next(blocks)))
    assert (portaudio.n_restarts, portaudio.streams[-1].device) == (1, 2)


def test_a_stream_that_can_not_be_closed_is_left_behind(
    portaudio: FakePortAudio, reported: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As PortAudio does when its thread runs in circles; the other microphones and the rest of the program go on."""
    monkeypatch.setattr(devices, "CLOSE_S", 0.1)
    before = os.dup(2)
    try:
        with Microphone(tell=reported.append) as mic, Microphone(1):
            blocks = mic.blocks(RATE)
            portaudio.streams[0].closing.clear()
            portaudio.streams[0].finished_callback()
            wait_for(lambda: not len(next(blocks)) and len(portaudio.streams) == 3)
            portaudio.deliver()
            wait_for(lambda: len(next(blocks)))
            os.write(2, b"flood")
            print("a line", file=sys.stderr)
        assert [stream.closed for stream in portaudio.streams] == [False, True, True]
        assert portaudio.n_restarts == 0
        portaudio.streams[0].closing.set()
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert reported[1].startswith("warning: PortAudio does not let go of 'Built-in'")
    assert reported[2] == "'Built-in' is back, at 16000 Hz"
    assert "flood" not in capfd.readouterr().err


@pytest.mark.parametrize("is_playing", [False, True])
def test_a_sound_that_was_played_does_not_count_as_an_open_stream(portaudio: FakePortAudio, is_playing: bool) -> None:
    """`sounddevice.play` leaves its stream open when the sound has ended."""
    portaudio.played = portaudio.OutputStream(active=is_playing)
    assert devices.look_again() == (not is_playing)
    assert portaudio.played.closed == (not is_playing)


def test_a_stream_that_failed_to_open_does_not_count_as_an_open_one(portaudio: FakePortAudio) -> None:
    portaudio.refusal = portaudio.PortAudioError("Invalid sample rate", -9997)
    with pytest.raises(DeviceError) as kept, Microphone():
        pass
    assert devices.look_again()
    assert kept.value


def test_a_device_that_came_after_the_program_began_is_found(portaudio: FakePortAudio) -> None:
    portaudio.devices.append(portaudio.device("Late", 16000))
    with Microphone("late") as mic:
        assert mic.device.number == 2


def test_a_device_that_is_not_there_yet_is_waited_for(portaudio: FakePortAudio, reported: list[str]) -> None:
    def plug_in() -> None:
        wait_for(lambda: portaudio.n_restarts > 3)
        portaudio.devices.append(portaudio.device("Late", 16000))
        wait_for(lambda: portaudio.streams)
        portaudio.deliver()

    helper = threading.Thread(target=plug_in)
    helper.start()
    with Microphone("late", tell=reported.append, wait=True) as mic:
        helper.join()
        assert mic.device.name == "Late"
        assert len(next(mic.blocks(RATE))) == 640
    assert reported == ["no input device for 'late'; --list-devices shows them; waiting for it"]


def test_what_is_discarded_becomes_silence_of_the_same_length(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        portaudio.deliver(3)
        assert next(blocks).all()
        mic.discard()
        portaudio.deliver(2)
        found = np.stack([next(blocks) for _ in range(4)])
        assert found.any(1).tolist() == [False, False, False, True], "with the block that is being captured"
    assert (mic.overflows, reported) == (0, [])


@pytest.mark.parametrize("constant", [0.0, 0.1, 2**-16])
def test_a_device_without_any_sound_is_reported_once(
    portaudio: FakePortAudio, reported: list[str], constant: float
) -> None:
    n_blocks = round(microphone.SILENT_S / devices.BLOCK_S)
    with Microphone(tell=reported.append) as mic:
        blocks = mic.blocks(RATE)

        def hear(value: float, n: int) -> None:
            portaudio.deliver(n, value=value)
            for _ in range(n):
                next(blocks)

        hear(constant, n_blocks - 1)
        assert reported == []
        hear(constant, 1)
        assert len(reported) == 1
        assert re.match(r"warning: 'Built-in' has delivered nothing but silence for 5 s: is it muted", reported[0])
        hear(constant, n_blocks)
    assert len(reported) == 1


def test_a_quiet_room_is_not_silence(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        for _ in range(2 * round(microphone.SILENT_S / devices.BLOCK_S)):
            portaudio.deliver(value=np.resize([[0.0001], [0.0]], (640, 1)))
            next(blocks)
    assert reported == []


WINDOWS = ["MME", "Windows DirectSound", "Windows WASAPI", "Windows WDM-KS"]


@pytest.fixture
def windows(portaudio: FakePortAudio) -> FakePortAudio:
    """One microphone under four host APIs, of which the first one cuts names off and is the default."""
    long_name = "Microphone (USB Audio Device 2.0)"
    names = [long_name[:31], long_name, long_name, long_name]
    portaudio.host_apis = WINDOWS
    portaudio._seen = [portaudio.device(name, 16000, 1, api) for api, name in enumerate(names)]
    return portaudio


@pytest.mark.parametrize(
    ("text", "host_api"),
    [
        ("usb", "MME"),
        ("Microphone (USB Audio Device 2.0)", "MME"),
        ("usb wasapi", "Windows WASAPI"),
        ("Microphone (USB Audio Device 2.0), Windows WDM-KS", "Windows WDM-KS"),
        ("directsound", "Windows DirectSound"),
    ],
)
@pytest.mark.usefixtures("windows")
def test_a_host_api_can_be_named_and_the_default_one_is_preferred(text: str, host_api: str) -> None:
    assert devices.choose(text).host_api == host_api


def test_the_host_api_is_shown(windows: FakePortAudio, capsys: pytest.CaptureFixture[str]) -> None:
    assert listen.main(["--list-devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "*   0  Microphone (USB Audio Device 2., MME  (1 channels, 16000 Hz)"
    assert [line.split(", ")[1].split("  ")[0] for line in lines] == WINDOWS
    assert listen.main(["--list-devices", "--json"]) == 0
    assert [json.loads(line)["host_api"] for line in capsys.readouterr().out.splitlines()] == WINDOWS


def test_it_comes_back_by_way_of_the_same_host_api(windows: FakePortAudio) -> None:
    lost = devices.choose("usb wasapi")
    windows._seen.insert(0, windows.device("New", 16000, 1, 0))
    found = devices.same_device(lost, "usb wasapi")
    assert (found.number, found.host_api) == (3, "Windows WASAPI")


@pytest.mark.usefixtures("windows")
def test_a_text_for_several_devices_is_refused(portaudio: FakePortAudio) -> None:
    portaudio._seen.append(portaudio.device("Another USB", 16000, 1, 0))
    with pytest.raises(DeviceError, match="2 input devices for 'usb'; --list-devices shows them"):
        devices.choose("usb")


def test_an_interrupt_does_not_end_the_wait_for_a_call_that_goes_on() -> None:
    """`Thread.join` believes after one that the thread has ended, and the program would end beneath it."""
    go_on = threading.Event()
    task = microphone._Task(lambda: bool(go_on.wait(DEADLINE_S)) and None)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            task.ended(DEADLINE_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not task.ended(0.05)
    go_on.set()
    assert task.ended(DEADLINE_S)


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

    def __init__(self, reported: list[str]) -> None:
        self.losses = microphone._Losses(reported.append)
        self.stream = SimpleNamespace(device=SimpleNamespace(sample_rate_hz=RATE), n_overflows=0, n_dropped=0)
        self.losses.watch(self.stream)  # type: ignore[arg-type]
        self.now_s, self.n_frames = 100.0, 0

    def run(self, seconds: float, speed: float = 1.0) -> None:
        """Blocks of audio that take `1 / speed` of their length to come."""
        for _ in range(round(seconds / devices.BLOCK_S)):
            self.n_frames += round(devices.BLOCK_S * RATE)
            self.now_s += devices.BLOCK_S / speed
            self.losses.check(self.now_s, self.n_frames)


def test_the_clock_finds_what_nobody_reports(reported: list[str]) -> None:
    clock = Clock(reported)
    clock.run(10)
    clock.now_s += 30  # the laptop was asleep
    clock.run(10)
    assert clock.losses.n_times == 1
    assert clock.losses.lost_s == pytest.approx(30, abs=0.1)
    assert reported == ["warning: audio was lost, 1 times so far, 30.0 s in all: the machine is too busy or slept"]


@pytest.mark.parametrize("speed", [0.999, 1.001])
def test_a_drifting_or_late_device_has_lost_nothing(reported: list[str], speed: float) -> None:
    clock = Clock(reported)
    for extra_s in np.arange(0, 2.4, 0.2):
        clock.run(60 + extra_s, speed)
        clock.now_s += 6  # the process slept, the sound server kept what came
        clock.run(6, speed=1000)
    assert (clock.losses.n_times, reported) == (0, [])


def test_what_is_lost_is_reported_at_once_and_then_now_and_then(reported: list[str]) -> None:
    clock = Clock(reported)
    clock.run(1)
    for _ in range(12):
        clock.stream.n_overflows += 1
        clock.run(2)
        if len(reported) == 1:
            assert reported == ["warning: audio was lost, 1 times so far: the machine is too busy or slept"]
    assert len(reported) == 3, "24 s: at once, after 10 s, after 20 s"
    clock.stream.n_dropped += 3 * RATE
    clock.run(12)
    assert "13 times so far, 3.0 s in all" in reported[-1]


def test_the_clock_does_not_count_again_what_the_driver_reported(reported: list[str]) -> None:
    clock = Clock(reported)
    clock.run(5)
    clock.now_s += 3
    clock.stream.n_overflows += 1
    clock.run(10)
    assert clock.losses.n_times == 1
    assert clock.losses.lost_s == pytest.approx(3, abs=0.1)


def test_a_backlog_that_is_full_drops_and_counts_once(portaudio: FakePortAudio, reported: list[str]) -> None:
    with Microphone(tell=reported.append) as mic:
        portaudio.deliver(round(15 / devices.BLOCK_S))
        blocks = mic.blocks(RATE)
        assert sum(len(next(blocks)) for _ in range(250)) == devices.BACKLOG_S * RATE
    assert mic.overflows == 1
    assert reported[0] == "warning: audio was lost, 1 times so far, 5.0 s in all: the machine is too busy or slept"


def test_the_unit_file_of_the_documentation_names_options_that_exist() -> None:
    page = (Path(__file__).parents[1] / "docs" / "systemd.md").read_text()
    command = re.search(r"^ExecStart=\S*/speech-listen (.*)$", page, re.MULTILINE)
    assert command
    arguments = parse(command[1].split())
    assert arguments.wait
    assert arguments.actions


# From here on: a real sound server, see sound_room.py.


def beginning(folder: Path, seconds: float) -> Path:
    samples, rate = soundfile.read(listen.DEMO)
    path = folder / f"first {seconds} s.wav"
    soundfile.write(path, samples[: round(seconds * rate)], rate)
    return path


@pytest.fixture
def yes_no(tmp_path: Path) -> Path:
    """The first two words of the demo."""
    return beginning(tmp_path, 3.1)


SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


@needs_sound
def test_what_is_played_is_printed_and_agrees_with_the_file(room: Room) -> None:
    for _ in range(3):
        with Listening(room) as listening:
            started = listening.started
            assert started.startswith("listening on default at 44100 Hz"), "resampled from the device's own rate"
            listening.hear(listen.DEMO, *SPOKEN)
            summary = listening.end()
            live = [json.loads(line) for line in listening.out.seen][-10:]
        if "0 overflows" in summary:
            break
    else:
        pytest.skip("this machine is too busy to play ten seconds without a loss")
    command = [sys.executable, "-m", "speech.listen", "--json", "--file", str(listen.DEMO)]
    from_file = [json.loads(line) for line in room.output(command).splitlines()]
    assert [d["word"] for d in live] == [d["word"] for d in from_file]
    for key in ("start_s", "end_s"):
        offsets = [a[key] - b[key] for a, b in zip(live, from_file, strict=True)]
        assert max(abs(offset - statistics.median(offsets)) for offset in offsets) <= 0.05, (key, offsets)


@needs_sound
def test_the_devices_are_listed_for_people_and_programs(room: Room) -> None:
    command = [sys.executable, "-m", "speech.listen", "--list-devices"]
    lines = room.output(command).splitlines()
    found = [json.loads(line) for line in room.output([*command, "--json"]).splitlines()]
    assert len(lines) == len(found) > 0
    assert sum(d["is_default"] for d in found) == 1
    assert any("default" in line and line.startswith("*") for line in lines)
    default = next(d for d in found if d["is_default"])
    for choice in (default["name"], str(default["number"]), f"{default['name']}, {default['host_api']}"):
        with Listening(room, "--device", choice, "--seconds", "0.5") as listening:
            assert listening.errors.until("heard").startswith("heard 0.5 s, 0 commands")
            assert listening.process.wait(DEADLINE_S) == 0


@needs_sound
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "no such device"), "no input device for"),
        (("--device", "99"), "no input device for"),
        (("--device", "default", "--channel", "99"), "channel 99 is wanted"),
        (("--channel", "centre"), "channel='centre' must be left, right, best, mix or a number from 1 on"),
    ],
)
def test_an_unknown_device_ends_in_one_clear_line(room: Room, arguments: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "speech.listen", *arguments]
    done = subprocess.run(command, env=room.environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1 + message.startswith("channel=")
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@needs_sound
def test_a_device_that_comes_back_is_listened_to_again(room: Room, yes_no: Path) -> None:
    with Listening(room) as listening:
        listening.hear(yes_no, "yes", "no")
        room.remove_sink()
        listening.errors.until("'default' stopped delivering audio; waiting for it")
        time.sleep(2.5)  # some looks in vain
        room.add_sink()
        listening.errors.until("'default' is back, at 44100 Hz")
        listening.hear(yes_no, "yes", "no")
        listening.end()
        lines = [line for line in listening.errors.seen if "default" in line and "warning" not in line]
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
        listening.hear(yes_no, "yes", "no")
        listening.end()


MICROPHONES = """
import sys, threading
from speech.sound.microphone import Microphone

def say(*words):
    sys.stdout.write(" ".join(words) + chr(10))  # in one piece, unlike print
    sys.stdout.flush()

def listen(name):
    with Microphone(tell=lambda text: say(name, text)) as microphone:
        say(name, "open")
        for block in microphone.blocks(16000):
            if over.is_set():
                return

over = threading.Event()
"""
"""Begins a program that may run several microphones; it ends with its standard input."""

TWO_MICROPHONES = """
threads = [threading.Thread(target=listen, args=[name]) for name in ("first", "second")]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
say("ended")
"""

OWN_OUTPUT = """
import sounddevice
output = sounddevice.OutputStream(channels=1, callback=lambda out, *_: out.fill(0))
output.start()
thread = threading.Thread(target=listen, args=["first"])
thread.start()
sys.stdin.read()
over.set()
thread.join()
assert not output.closed
output.active  # raises when the stream is an invalid pointer
output.stop()
output.close()
output = sounddevice.OutputStream(channels=1)
output.start()
output.close()
say("ended")
"""

SECOND_USE = """
microphone = Microphone(tell=lambda text: say("first", text))
with microphone:
    next(microphone.blocks(16000))
def read():
    for block in blocks:
        pass
with microphone:
    blocks = microphone.blocks(16000)
    next(blocks)
    thread = threading.Thread(target=read)
    thread.start()
    say("first open")
    sys.stdin.read()
thread.join()
say("ended")
"""


@needs_sound
@pytest.mark.parametrize(
    ("program", "names"),
    [(TWO_MICROPHONES, ["first", "second"]), (OWN_OUTPUT, ["first"]), (SECOND_USE, ["first"])],
    ids=["two microphones", "an output of the program's own", "a second use"],
)
def test_a_restarted_server_crashes_nothing(room: Room, program: str, names: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MICROPHONES + program],
        env=room.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        lines = Lines(process.stdout)
        for name in names:
            lines.until(f"{name} open")
        room.kill()
        for name in names:
            lines.until(f"{name} 'default' stopped delivering audio; waiting for it")
        time.sleep(1.5)
        room.start()
        for name in names:
            lines.until(f"{name} 'default' is back, at 44100 Hz")
        time.sleep(2)  # it would go again at once
        process.stdin.close()
        lines.until("ended")
        assert process.wait(DEADLINE_S) == 0
    for name in names:
        news = [line for line in lines.seen if line.startswith(name) and "warning" not in line]
        assert len([line for line in news if "stopped" in line or "back" in line]) == 2, news


@needs_sound
def test_one_microphone_is_not_opened_twice(room: Room) -> None:
    script = """
from speech.errors import DeviceError
microphone = Microphone()
with microphone:
    try:
        with microphone:
            pass
    except DeviceError as error:
        print(error)
    print(len(next(microphone.blocks(16000))) > 0)
"""
    command = [sys.executable, "-X", "faulthandler", "-c", MICROPHONES + script]
    done = subprocess.run(command, env=room.environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "this microphone is open already; use one Microphone for each `with` statement", "True",
    ]  # fmt: skip


@needs_sound
def test_a_sound_server_that_is_not_there_yet_is_waited_for(room: Room, yes_no: Path) -> None:
    """As at the start of a machine."""
    room.kill()
    with Listening(room, "--wait", from_line="waiting for it") as listening:
        room.start()
        listening.errors.until("listening on")
        listening.hear(yes_no, "yes", "no")
        listening.end()
        (waiting,) = [line for line in listening.errors.seen if "waiting for it" in line]
        assert listening.errors.seen.index(waiting) == 0, "the sound libraries complain to nobody"


@needs_sound
def test_without_waiting_a_missing_server_is_one_line(room: Room) -> None:
    room.kill()
    command = [sys.executable, "-m", "speech.listen"]
    done = subprocess.run(command, env=room.environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert re.match("error: (no input device|can't record from)", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


@needs_sound
def test_an_interrupt_ends_it_while_it_waits(room: Room) -> None:
    room.kill()
    command = [sys.executable, "-m", "speech.listen", "--wait"]
    with subprocess.Popen(command, env=room.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        errors = Lines(process.stderr)
        errors.until("waiting for it")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    assert not [line for line in errors.now() if "Traceback" in line]


@pytest.fixture
def two_channels(tmp_path: Path) -> Callable[[str], Path]:
    """The first five words on the left, and on the right noise, the same in opposite phase, or nothing."""

    def make(right: str) -> Path:
        speech, rate = soundfile.read(listen.DEMO)
        speech = speech[: round(6.5 * rate)]
        other = {"hiss": np.random.default_rng(0).normal(0, 0.1, len(speech)), "phase": -speech, "dead": 0 * speech}
        soundfile.write(tmp_path / "two.wav", np.stack([speech, other[right]], 1), rate)
        return tmp_path / "two.wav"

    return make


@needs_sound
@pytest.mark.parametrize(
    ("right", "arguments", "n_words"),
    [
        ("hiss", (), 5),
        ("hiss", ("--channel", "left"), 5),
        ("hiss", ("--channel", "right"), 0),
        ("phase", (), 5),
        ("phase", ("--channel", "mix"), 0),
        ("dead", (), 5),
        ("dead", ("--channel", "2"), 0),
    ],
)
def test_the_channel_that_speaks_is_heard(
    room: Room, two_channels: Callable[[str], Path], right: str, arguments: tuple[str, ...], n_words: int
) -> None:
    with Listening(room, *arguments) as listening:
        listening.hear(two_channels(right), *SPOKEN[:n_words])


@needs_sound
def test_a_muted_source_is_reported_once(room: Room) -> None:
    room.control("set-source-mute", f"{SINK}.monitor", "1")
    try:
        with Listening(room, "--seconds", "12") as listening:
            room.play(listen.DEMO)
            listening.errors.until("warning: 'default' has delivered nothing but silence for 5 s: is it muted")
            listening.errors.until("heard")
            assert len([line for line in listening.errors.seen if "silence" in line]) == 1
    finally:
        room.control("set-source-mute", f"{SINK}.monitor", "0")


@needs_sound
def test_nothing_that_is_played_during_a_pause_is_heard(room: Room, yes_no: Path) -> None:
    with Listening(room) as listening:
        for text in ("paused", "listening again"):
            listening.process.send_signal(signal.SIGUSR1)
            listening.errors.until(text)
            if text == "paused":
                listening.hear(yes_no)
        listening.hear(yes_no, "yes", "no")


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
            assert listening.process.wait(20) == 0, "the server's own time limit is half a minute"
            assert "0 commands" in listening.errors.until("heard")
        finally:
            room.server.send_signal(signal.SIGCONT)
            room.kill()


@needs_sound
def test_a_device_that_disappears_ends_it_where_that_is_wanted(room: Room) -> None:
    with Listening(room, "--no-reconnect") as listening:
        room.remove_sink()
        assert listening.process.wait(DEADLINE_S) == 1
        listening.errors.until("error: 'default' stopped delivering audio: was it unplugged?")
        assert not any("Traceback" in line for line in listening.errors.seen)


@needs_sound
def test_a_process_that_slept_reports_what_it_missed_and_goes_on(room: Room, yes_no: Path) -> None:
    script = (
        "import sys; from speech import listen; from speech.sound import devices; devices.BACKLOG_S = 1; "
        "sys.exit(listen.main())"
    )
    with Listening(room, program=("-c", script)) as listening:
        time.sleep(0.5)
        listening.process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        listening.process.send_signal(signal.SIGCONT)
        warning = listening.errors.until("warning: audio was lost")
        assert re.match(r"warning: audio was lost, \d+ times so far", warning)
        assert len([line for line in listening.errors.now() if "audio was lost" in line]) == 1, "one line for one sleep"
        assert listening.process.poll() is None, "it is reported while it runs"
        listening.hear(yes_no, "yes", "no")
        n_losses = int(re.search(r"(\d+) overflows", listening.end())[1])  # type: ignore[index]
        assert n_losses >= 1


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
        listening.hear(beginning(tmp_path, 6.5), "yes", "no", "up", "down", "left")
        wait_for(note.exists)
        for line in ("yes: killed after 3 s", "no: exit status 7: broken", "up: killed after 3 s"):
            listening.errors.until(f"action {line}")
        listening.end()
    wait_for(lambda: note.read_text().strip() == "left")


@needs_sound
def test_a_microphone_is_recorded(room: Room, tmp_path: Path, yes_no: Path) -> None:
    with Listening(room, "--record", str(tmp_path / "kept")) as listening:
        listening.hear(yes_no, "yes", "no")
        listening.end()
    kept = sorted((tmp_path / "kept").glob("*.json"))
    found = [json.loads(path.read_text()) for path in kept]
    assert [f["word"] for f in found if f["kind"] == "detection"][-2:] == ["yes", "no"]
    assert {f["source"] for f in found} == {"default"}
    for path in kept:
        samples, rate = soundfile.read(path.with_suffix(".wav"))
        assert rate == RATE
        assert np.abs(samples).max() > 0.02
