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
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_portaudio import FakePortAudio
from sound_room import DEADLINE_S, Lines, Listening, Room, needs_sound, wait_for

from speech import listen
from speech.errors import ConfigError, DeviceError
from speech.listen import parse
from speech.sound import devices, microphone
from speech.sound.channels import Channel
from speech.sound.devices import NoPortAudio
from speech.sound.microphone import Microphone

RATE = 16000
ROOT = Path(__file__).parents[1]


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    return FakePortAudio(monkeypatch)


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
    portaudio.devices = []
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
    portaudio.devices = [portaudio.device("Interface", 16000, channels)]
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
    portaudio.devices = [portaudio.device("Array", 16000, 4)]
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "no such device"], "no input device for"),
        (["--device", "99"], "no input device for"),
        (["--device", "built", "--channel", "99"], "channel 99 is wanted"),
        (["--channel", "centre"], "channel='centre' must be left, right, best, mix or a number from 1 on"),
    ],
)
@pytest.mark.usefixtures("portaudio")
def test_an_unknown_device_ends_in_one_clear_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = listen.main(arguments)
    except SystemExit as ended:
        status = ended.code
    (line,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("usage")]
    assert status == 1 + message.startswith("channel=")
    assert message in line


def test_a_device_that_is_not_there_yet_is_waited_for(portaudio: FakePortAudio, reported: list[str]) -> None:
    def plug_in() -> None:
        wait_for(lambda: portaudio.n_restarts > 3)
        portaudio.devices.append(portaudio.device("Late", 16000))
        wait_for(lambda: portaudio.streams)
        portaudio.deliver(2)

    helper = threading.Thread(target=plug_in)
    helper.start()
    with Microphone("late", tell=reported.append, wait=True) as mic:
        helper.join()
        assert mic.device.name == "Late"
        assert len(next(mic.blocks(RATE))) == 640
    assert reported == ["no input device for 'late'; --list-devices shows them; waiting for it"]


def test_what_is_discarded_becomes_silence_of_the_same_length(
    portaudio: FakePortAudio, reported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = [0.0]
    for module in (devices, microphone):
        monkeypatch.setattr(module, "now_s", lambda: clock_s[0])

    def deliver(n: int) -> None:
        for _ in range(n):
            clock_s[0] += devices.BLOCK_S
            portaudio.deliver()

    with Microphone(tell=reported.append) as mic:
        blocks = mic.blocks(RATE)
        deliver(3)
        assert next(blocks).all()
        mic.discard()
        deliver(2)
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
    portaudio.devices = portaudio.seen = [portaudio.device(name, 16000, 1, api) for api, name in enumerate(names)]
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
    windows.devices.insert(0, windows.device("New", 16000, 1, 0))
    found = devices.same_device(lost, "usb wasapi")
    assert (found.number, found.host_api) == (3, "Windows WASAPI")


@pytest.mark.usefixtures("windows")
def test_a_text_for_several_devices_is_refused(portaudio: FakePortAudio) -> None:
    portaudio.devices.append(portaudio.device("Another USB", 16000, 1, 0))
    with pytest.raises(DeviceError, match="2 input devices for 'usb'; --list-devices shows them"):
        devices.choose("usb")


def test_a_sound_system_that_hangs_holds_up_neither_the_start_nor_the_end(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    for module in (devices, microphone):
        monkeypatch.setattr(module, "OPEN_S", 0.1)
    monkeypatch.setattr(portaudio, "query_devices", lambda: [][: hanging.wait(20)])
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="does not answer"), Microphone():
        pass
    with pytest.raises(DeviceError, match="does not answer"):
        devices.list_devices()
    hanging.set()
    assert time.monotonic() - begin < 5


def test_what_lies_in_the_working_folder_is_not_imported_by_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place or str(ROOT) for place in sys.path])  # as of an installed program
    monkeypatch.setattr(devices, "OPEN_S", DEADLINE_S)
    with suppress(NoPortAudio):  # the library is not installed here
        assert isinstance(devices.list_devices(), list)


class Losses:
    """Blocks of 40 ms that come when a test says so."""

    def __init__(self, reported: list[str]) -> None:
        self.watch = microphone._Watch(reported.append)
        self.watch.begin(devices.InputDevice(0, "fake", "ALSA", 1, RATE, True))
        self.now_s, self.n_frames, self.n_overflows = 100.0, 0, 0

    def run(self, seconds: float, speed: float = 1.0) -> None:
        """Blocks of audio that take `1 / speed` of their length to come."""
        for n in range(round(seconds / devices.BLOCK_S)):
            self.n_frames += 640
            self.now_s += devices.BLOCK_S / speed
            block = devices.Captured(self.now_s, self.n_frames, self.n_overflows, 1, b"")
            self.watch.check(block, np.full(640, n % 2, np.float32) * np.resize([0, 0.1], 640).astype(np.float32))


def test_a_sleep_is_noticed_by_the_clock(reported: list[str]) -> None:
    losses = Losses(reported)
    losses.run(10)
    losses.now_s += 30  # the laptop was asleep
    losses.run(10)
    assert losses.watch.n_losses == 1
    assert reported == ["warning: audio was lost, 1 times so far, 30.0 s in all: the machine is too busy or slept"]


@pytest.mark.parametrize("speed", [0.999, 1.001])
def test_a_drifting_or_late_device_has_lost_nothing(reported: list[str], speed: float) -> None:
    losses = Losses(reported)
    for _ in range(3):
        losses.run(60, speed)
        losses.now_s += 2.5  # the process had no time, the sound server kept what came
        losses.run(2.5, speed=1000)
    assert (losses.watch.n_losses, reported) == (0, [])


def test_what_is_lost_is_reported_at_once_and_then_now_and_then(reported: list[str]) -> None:
    losses = Losses(reported)
    losses.run(1)
    for _ in range(12):
        losses.n_overflows += 1
        losses.run(2)
        if len(reported) == 1:
            assert reported == ["warning: audio was lost, 1 times so far: the machine is too busy or slept"]
    assert len(reported) == 3, "24 s: at once, after 10 s, after 20 s"
    losses.n_frames += 3 * RATE  # blocks that were dropped
    losses.n_overflows += 1
    losses.run(12)
    assert "13 times so far, 3.0 s in all" in reported[-1]


def test_a_backlog_that_is_full_drops_and_counts_once(portaudio: FakePortAudio, reported: list[str]) -> None:
    noise = np.resize([[0.0], [0.1]], (640, 1))
    with Microphone(tell=reported.append) as mic:
        for _ in range(1000):
            portaudio.deliver(value=noise)
        time.sleep(0.5)
        blocks = mic.blocks(RATE)
        n_read = sum(len(next(blocks)) for _ in range(round(devices.BACKLOG_S / devices.BLOCK_S)))
        portaudio.deliver(value=noise)
        while not reported:
            n_read += len(next(blocks))
    assert mic.overflows == 1
    lost_s = float(re.search(r"1 times so far, (\d+\.\d) s in all", reported[0])[1])  # type: ignore[index]
    assert lost_s == pytest.approx(1000 * devices.BLOCK_S - n_read / RATE, abs=0.2)


def test_the_unit_file_of_the_documentation_names_options_that_exist() -> None:
    page = (ROOT / "docs" / "systemd.md").read_text()
    command = re.search(r"^ExecStart=\S*/speech-listen (.*)$", page, re.MULTILINE)
    assert command
    arguments = parse(command[1].split())
    assert arguments.wait
    assert arguments.actions


# From here on: a real sound server, see sound_room.py.


@pytest.fixture
def yes_no(tmp_path: Path) -> Path:
    """The first two words of the demo."""
    samples, rate = soundfile.read(listen.DEMO)
    soundfile.write(tmp_path / "yes no.wav", samples[: round(3.1 * rate)], rate)
    return tmp_path / "yes no.wav"


SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


@needs_sound
def test_what_is_played_is_printed_recorded_and_agrees_with_the_file(room: Room, tmp_path: Path) -> None:
    """The words are on the left, and noise is on the right; test_channels has other cases."""
    speech, rate = soundfile.read(listen.DEMO)
    hiss = np.random.default_rng(0).normal(0, 0.1, len(speech))
    soundfile.write(tmp_path / "two.wav", np.stack([speech, hiss], 1), rate)
    for attempt in range(3):
        kept = tmp_path / str(attempt)
        with Listening(room, "--record", str(kept)) as listening:
            started = listening.started
            assert started.startswith("listening on default at 44100 Hz"), "resampled from the device's own rate"
            listening.hear(tmp_path / "two.wav", *SPOKEN)
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
    notes = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
    assert [note["word"] for note in notes if note["kind"] == "detection"][-10:] == SPOKEN
    assert {note["source"] for note in notes} == {"default"}
    samples, rate = soundfile.read(next(kept.glob("*.wav")))
    assert rate == RATE
    assert np.abs(samples).max() > 0.02


@needs_sound
def test_the_devices_are_listed_for_people_and_programs(room: Room) -> None:
    command = [sys.executable, "-m", "speech.listen", "--list-devices"]
    lines = room.output(command).splitlines()
    found = [json.loads(line) for line in room.output([*command, "--json"]).splitlines()]
    assert len(lines) == len(found) > 0
    assert sum(d["is_default"] for d in found) == 1
    assert any("default" in line and line.startswith("*") for line in lines)
    default = next(d for d in found if d["is_default"])
    with Listening(room, "--device", f"{default['name']}, {default['host_api']}", "--seconds", "0.5") as listening:
        assert listening.errors.until("heard").startswith("heard 0.5 s, 0 commands")
        assert listening.process.wait(DEADLINE_S) == 0


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


TWO_MICROPHONES_AND_AN_OUTPUT = """
import sys, threading
import sounddevice
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
output = sounddevice.OutputStream(channels=1, callback=lambda out, *_: out.fill(0))
output.start()
threads = [threading.Thread(target=listen, args=[name]) for name in ("first", "second")]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
assert not output.closed
output.active  # raises when the stream is an invalid pointer
output.close()
output = sounddevice.OutputStream(channels=1)
output.start()
output.close()
say("ended")
"""
"""Ends with its standard input."""


@needs_sound
def test_a_restarted_server_crashes_nothing(room: Room) -> None:
    """Neither two microphones nor a stream of the program's own."""
    names, pipe = ("first", "second"), subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", TWO_MICROPHONES_AND_AN_OUTPUT],
        env=room.environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True,
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
def test_a_missing_server_is_one_line_and_an_interrupt_ends_the_wait_for_it(room: Room) -> None:
    room.kill()
    command = [sys.executable, "-m", "speech.listen"]
    done = subprocess.run(command, env=room.environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match("error: (no input device|can't record from)", line), "nothing of the sound libraries before it"
    with subprocess.Popen([*command, "--wait"], env=room.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        errors = Lines(process.stderr)
        errors.until("waiting for it")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    assert not [line for line in errors.now() if "Traceback" in line]


@needs_sound
def test_it_ends_while_it_waits_for_a_hanging_sound_server(room: Room) -> None:
    with Listening(room) as listening:
        assert room.server
        room.server.send_signal(signal.SIGSTOP)
        try:
            listening.errors.until("waiting for it")
            time.sleep(0.5)
            listening.process.send_signal(signal.SIGTERM)
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
    with Listening(room) as listening:
        time.sleep(0.5)
        listening.process.send_signal(signal.SIGSTOP)
        time.sleep(devices.BACKLOG_S + 3)
        listening.process.send_signal(signal.SIGCONT)
        assert re.match(r"warning: audio was lost, \d+ times so far, \d", listening.errors.until("audio was lost"))
        assert listening.process.poll() is None, "it is reported while it runs"
        listening.hear(yes_no, "yes", "no")
        assert int(re.search(r"(\d+) overflows?", listening.end())[1]) >= 1  # type: ignore[index]
