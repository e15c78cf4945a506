"""The echo canceller: against rooms of noise, and between two sinks of a real sound server."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import fftconvolve
from sound_room import SINK, Listening, Room, needs_sound

from speech.console import DEMO
from speech.errors import AudioError, DeviceError
from speech.sound.echo import HOP, RATE_HZ, EchoCanceller, Playback, without_echo
from speech.sound.files import Block, read

SECONDS = 12


@pytest.fixture(scope="module")
def played() -> Block:
    """Speech that goes on: the demo backwards, without its pauses."""
    demo = read(DEMO, RATE_HZ)[::-1]
    tenths = demo[: len(demo) // 1600 * 1600].reshape(-1, 1600)
    return np.resize(tenths[np.abs(tenths).max(1) > 0.02], SECONDS * RATE_HZ)


def echo_of(played: Block, delay_s: float, seed: int = 0) -> Block:
    """What arrives through a room with a reverberation of 0.3 s."""
    time_s = np.arange(round(0.3 * RATE_HZ)) / RATE_HZ
    room = np.random.default_rng(seed).standard_normal(len(time_s)) * 10 ** (-3 * time_s / 0.3)
    room = np.concatenate([np.zeros(round(delay_s * RATE_HZ)), room / np.linalg.norm(room)])
    return fftconvolve(played, room)[: len(played)].astype(np.float32)


def cancelled(heard: Block, played: Block, size: int = 640) -> Block:
    canceller, cuts = EchoCanceller(), range(size, len(heard), size)
    pairs = zip(np.split(heard, cuts), np.split(played, cuts), strict=True)
    return np.concatenate([canceller.filter(block, reference=reference) for block, reference in pairs])


def power_db(waveform: Block) -> float:
    return float(10 * np.log10(np.square(waveform).mean()))


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.7])
def test_the_delay_is_found_and_the_echo_is_taken_out(played: Block, delay_s: float) -> None:
    heard = echo_of(played, delay_s)
    late = slice(8 * RATE_HZ, None)
    assert power_db(heard[late]) - power_db(cancelled(heard, played)[late]) > 20


@pytest.mark.parametrize("echo", [0.0, 1.0])
def test_who_speaks_meanwhile_is_left_as_they_are(played: Block, echo: float) -> None:
    """Also if there is no echo, as with headphones."""
    person = np.zeros(len(played), np.float32)
    words = read(DEMO, RATE_HZ)[: 4 * RATE_HZ]
    person[7 * RATE_HZ :][: len(words)] = words
    left = cancelled(person + echo * echo_of(played, 0.1), played)
    at = slice(7 * RATE_HZ, 7 * RATE_HZ + len(words))
    is_loud = np.abs(words) > 0.05
    assert power_db(words[is_loud]) - power_db((left[at] - words)[is_loud]) > 10, "of an echo that was as loud"


def test_without_a_reference_nothing_changes_and_pieces_do_not_matter(played: Block) -> None:
    np.testing.assert_allclose(cancelled(played, 0 * played), played[: len(played) // HOP * HOP], atol=1e-6)
    heard = echo_of(played, 0.05)[: 2 * RATE_HZ]
    np.testing.assert_array_equal(cancelled(heard, played[: len(heard)], 100), cancelled(heard, played[: len(heard)]))
    with pytest.raises(AudioError, match="3 samples of reference for 4 of audio"):
        EchoCanceller().filter(played[:4], played[:3])


def test_it_costs_about_ten_milliseconds_a_second(played: Block) -> None:
    heard = echo_of(played, 0.1)
    begin_s = time.process_time()
    cancelled(heard, played)
    assert (time.process_time() - begin_s) / SECONDS < 0.04, "some more on a busy machine"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DeviceError, match=r"needs parec.*Debian: pulseaudio-utils"):
        Playback()


PAREC = """#!/usr/bin/env python3
import array, sys, time
for n in range(100):
    sys.stdout.buffer.write(array.array("h", range(1 + n * 320, 321 + n * 320)).tobytes())
    sys.stdout.buffer.flush()
    time.sleep(0.4 if n == 50 else 0.02)
time.sleep(60)
"""
"""It counts, with a pause."""


def test_the_reference_keeps_its_place_and_begins_anew_with_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parec").write_text(PAREC)
    (tmp_path / "parec").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    playback, found = Playback(), []
    while not len(found) or not found[-1].any():
        found = [playback.take(640)]
        time.sleep(0.02)
    for _ in range(45):
        time.sleep(0.03)
        found.append(playback.take(640))
    values = [np.round(block * 32768) for block in found]
    is_whole = [bool(block.all()) for block in values]
    assert not all(is_whole[:-1]), "there was a pause"
    assert sum(is_whole[is_whole.index(False) :]) > 3
    starts = [block[0] - 640 * n for n, block in enumerate(values) if block.all()]
    assert len(set(starts)) == 1, "what comes too late is left out"
    blocks = [np.zeros(640, np.float32), np.zeros(0, np.float32), np.zeros(640, np.float32)]
    assert [len(block) for block in without_echo(blocks, playback)] == [512, 0, 512]
    assert playback._process is None


@needs_sound
def test_commands_are_heard_while_the_machine_plays(room: Room, tmp_path: Path, played: Block) -> None:
    """What is played to one sink comes, late, into the other, which is the microphone."""
    room.control("load-module", "module-null-sink", "sink_name=speaker", "rate=48000", "channels=2")
    room.control("set-default-sink", "speaker")
    echo = room.control("load-module", "module-loopback", "source=speaker.monitor", f"sink={SINK}", "latency_msec=100")
    assert echo.strip().isdigit()
    words = tmp_path / "words.wav"
    soundfile.write(words, read(DEMO, RATE_HZ)[: round(3.1 * RATE_HZ)], RATE_HZ)
    soundfile.write(tmp_path / "played.wav", np.tile(played, 5), RATE_HZ)
    command = ["paplay", "--device=speaker", "--latency-msec=4000", str(tmp_path / "played.wav")]
    with Listening(room, "--echo", "--after-talk", "0") as listening:
        speaker = subprocess.Popen(command, env=room.environment)
        try:
            time.sleep(6)
            listening.hear(words, "yes", "no")
        finally:
            speaker.kill()
            room.control("unload-module", echo.strip())
    assert all(json.loads(line)["word"] in ("yes", "no") for line in listening.out.seen)
