"""Listening beside a program: in a thread, and for asyncio."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fake_portaudio import FakePortAudio
from sound_room import DEADLINE_S, Lines, Room, needs_sound, wait_for

from speech import Detection, Listener, Recognizer, listen, listen_async, listen_in_background
from speech.errors import AudioError, DeviceError
from speech.sound.files import Block, read_blocks
from speech.sound.microphone import Microphone

RATE = 16000
SPOKEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]


@pytest.fixture
def reported() -> list[str]:
    return []


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    return FakePortAudio(monkeypatch)


def demo() -> Iterator[Block]:
    return read_blocks(listen.DEMO, RATE)


def endless() -> Iterator[Block]:
    while True:
        yield np.zeros(640, np.float32)
        time.sleep(0.001)


def test_a_recording_is_heard_in_a_thread_of_its_own(reported: list[str]) -> None:
    found: list[tuple[str, int]] = []
    background = listen_in_background(
        lambda d: found.append((d.word, threading.get_ident())), None, demo(), reported.append
    )
    background.wait(DEADLINE_S)
    assert not background.is_running
    assert [word for word, _ in found] == SPOKEN
    assert {thread for _, thread in found} & {threading.get_ident()} == set()
    assert (reported, background.error) == ([], None)
    background.stop()


def test_a_callback_that_fails_is_reported_and_survived(reported: list[str]) -> None:
    found: list[str] = []

    def fail(detection: Detection) -> None:
        found.append(detection.word)
        if detection.word in ("no", "up"):
            raise ValueError(f"can't {detection.word}\nat all")

    listen_in_background(fail, None, demo(), reported.append).wait(DEADLINE_S)
    assert found == SPOKEN
    assert reported == [
        "callback for 'no': ValueError: can't no at all",
        "callback for 'up': ValueError: can't up at all",
    ]


def test_a_source_that_fails_ends_it_with_one_line(reported: list[str]) -> None:
    def broken() -> Iterator[Block]:
        yield np.zeros(640, np.float32)
        raise AudioError("the cable is torn")

    background = listen_in_background(print, None, broken(), reported.append)
    background.wait(DEADLINE_S)
    assert reported == ["error: the cable is torn"]
    assert isinstance(background.error, AudioError)


def test_it_stops_from_anywhere(reported: list[str]) -> None:
    with listen_in_background(print, None, endless(), reported.append) as background:
        assert background.is_running
    assert not background.is_running

    found: list[str] = []
    begin = threading.Event()

    def stop_at_up(detection: Detection) -> None:
        found.append(detection.word)
        if detection.word == "up":
            background.stop()  # in the listening thread itself

    def when_begun() -> Iterator[Block]:
        begin.wait()
        yield from demo()

    background = listen_in_background(stop_at_up, None, when_begun(), reported.append)
    begin.set()
    background.wait(DEADLINE_S)
    assert found == ["yes", "no", "up"]
    assert (reported, background.error) == ([], None)


def test_what_comes_while_it_pauses_is_not_heard(reported: list[str]) -> None:
    found: list[str] = []

    def pause_after_up(detection: Detection) -> None:
        found.append(detection.word)
        if detection.word == "up":
            background.pause()

    begin = threading.Event()

    def blocks() -> Iterator[Block]:
        begin.wait()
        yield from demo()
        assert background.is_paused
        background.resume()
        yield np.zeros(640, np.float32)
        yield from demo()

    background = listen_in_background(pause_after_up, None, blocks(), reported.append)
    begin.set()
    background.wait(DEADLINE_S)
    assert found == ["yes", "no", "up"] * 2
    assert reported == []


def test_a_microphone_that_can_not_be_opened_is_an_error_at_once(portaudio: FakePortAudio, reported: list[str]) -> None:
    portaudio.devices = []
    with pytest.raises(DeviceError, match="no input device"):
        listen_in_background(print, source=Microphone(tell=reported.append), tell=reported.append)
    assert reported == []


def test_a_microphone_is_open_when_it_returns_and_closed_when_it_has_stopped(
    portaudio: FakePortAudio, reported: list[str]
) -> None:
    background = listen_in_background(print, source=Microphone(tell=reported.append), tell=reported.append)
    wait_for(lambda: [stream.closed for stream in portaudio.streams] == [False])
    portaudio.deliver(3)
    background.stop()
    assert [stream.closed for stream in portaudio.streams] == [True]
    assert (reported, background.error) == ([], None)


def test_a_microphone_that_is_waited_for_holds_up_nothing(portaudio: FakePortAudio, reported: list[str]) -> None:
    unplugged, portaudio.devices = portaudio.devices, []
    for is_plugged_in in (False, True):
        background = listen_in_background(
            print, source=Microphone(tell=reported.append, wait=True), tell=reported.append
        )
        wait_for(lambda: reported)
        if is_plugged_in:
            portaudio.devices = unplugged
            wait_for(lambda: portaudio.streams)
            portaudio.deliver(2)
        background.stop()
        assert not background.is_running
        assert background.error is None
        assert len(reported) == 1
        assert reported.pop().endswith("waiting for it")
    assert all(stream.closed for stream in portaudio.streams)


def test_asyncio_goes_on_meanwhile() -> None:
    async def listen_and_count() -> tuple[list[str], int]:
        n_turns = 0

        async def turn() -> None:
            nonlocal n_turns
            while True:
                n_turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        found = [detection.word async for detection in listen_async(source=demo())]
        turning.cancel()
        return found, n_turns

    found, n_turns = asyncio.run(listen_and_count())
    assert found == SPOKEN
    assert n_turns > 100


@pytest.mark.parametrize("way", ["break", "cancel", "aclosing"])
def test_asyncio_leaves_no_thread_behind(way: str) -> None:
    def two_words() -> Iterator[Block]:
        yield from demo()
        yield from endless()

    async def leave() -> None:
        if way == "aclosing":
            async with contextlib.aclosing(listen_async(source=two_words())) as detections:
                async for _ in detections:
                    break
        else:
            async for _ in listen_async(source=two_words()):
                if way == "break":
                    break

    async def main() -> None:
        task = asyncio.create_task(leave())
        if way == "cancel":
            await asyncio.sleep(1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            await task

    asyncio.run(main())
    wait_for(lambda: "speech" not in [thread.name for thread in threading.enumerate()])


def test_asyncio_gets_the_error_of_its_source(reported: list[str]) -> None:
    def broken() -> Iterator[Block]:
        yield from demo()
        raise AudioError("the cable is torn")

    found = []

    async def main() -> None:
        async for detection in listen_async(source=broken(), tell=reported.append):
            found.append(detection.word)

    with pytest.raises(AudioError, match="torn"):
        asyncio.run(main())
    assert found[:9] == SPOKEN[:9]


def test_the_listener_of_a_program_is_used() -> None:
    found: list[str] = []
    listener = Listener(Recognizer.load(), words=["left", "right"])
    listen_in_background(lambda d: found.append(d.word), listener, demo()).wait(DEADLINE_S)
    assert found == ["left", "right"]


@needs_sound
def test_a_microphone_is_heard_beside_a_program_that_plays_sounds_itself(room: Room) -> None:
    script = """
import sys, time
import sounddevice
from speech import listen_in_background
output = sounddevice.OutputStream(channels=1, callback=lambda out, *_: out.fill(0))
output.start()
with listen_in_background(lambda d: print(d.word, flush=True)) as background:
    print("ready", flush=True)
    sys.stdin.readline()
assert output.active
output.close()
print("stopped", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=room.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        lines = Lines(process.stdout)
        lines.until("ready")
        for _ in range(3):  # a starved machine may lose some
            room.play(listen.DEMO)
            with contextlib.suppress(AssertionError):
                lines.until("off", seconds=5)
                break
        lines.until("off", seconds=1)
        process.stdin.write("\n")
        process.stdin.flush()
        lines.until("stopped")
        assert process.wait(DEADLINE_S) == 0
