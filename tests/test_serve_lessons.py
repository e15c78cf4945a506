"""Own words taught over the socket and on the page, spoken by espeak-ng."""

import asyncio
import io
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("websockets", reason="needs the extra `serve`")

from serving import factory, run
from test_serve_browser import PATIENCE_S, chromium, needs_chromium, opened, served_in_thread, text
from test_serve_page import next_event, send_all, served, socket_of, words_of

from speech.own.words import OwnWords
from speech.recognizer import Recognizer
from speech.serve.lessons import ClientLesson, can_learn
from speech.serve.messages import TIMES
from speech.serve.security import Access
from speech.serve.streams import ListenerFactory, PcmDecoder
from speech.serve.wyoming import TextStream, WyomingServer
from speech.sound.files import pcm, resample

RATE_HZ = 48000
ESPEAK = shutil.which("espeak-ng")
OWN = "computer"

pytestmark = pytest.mark.skipif(ESPEAK is None, reason="needs espeak-ng")


def spoken(word: str, voice: str, speed: int, pitch: int, rate_hz: int = 16000) -> np.ndarray:
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    done = subprocess.run(command, check=True, capture_output=True)
    samples, from_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    sound = resample(samples, from_hz, rate_hz)
    return 0.4 * sound / np.abs(sound).max()


def recording(*words: str) -> np.ndarray:
    """Words with pauses, in one voice that varies a little, over a faint hiss, at `RATE_HZ`."""
    pieces = [np.zeros(RATE_HZ, np.float32)]
    for n, word in enumerate(words):
        pieces += [
            spoken(word, "en-us+m3", 135 + 6 * (n % 4), 40 + 2 * (n % 3), RATE_HZ),
            np.zeros(RATE_HZ, np.float32),
        ]
    audio = np.concatenate(pieces)
    return audio + 1e-3 * np.random.default_rng(0).standard_normal(len(audio)).astype(np.float32)


@pytest.fixture
def recognizer(tmp_path: Path) -> Recognizer:
    return Recognizer.load(own=OwnWords.load(tmp_path / "own"))


async def taught(socket: Any, audio: bytes, word: str = OWN, **more: Any) -> list[dict[str, Any]]:
    """Everything that is said about a lesson, up to `stopped`."""
    await socket.send(json.dumps({"type": "teach", "rate_hz": RATE_HZ, "word": word} | more))
    events = [await next_event(socket)]
    if events[0]["type"] == "error":
        return events
    for begin in range(0, len(audio), 9600):
        await socket.send(audio[begin : begin + 9600])
    await socket.send(json.dumps({"type": "stop"}))
    while events[-1]["type"] != "stopped":
        events.append(await next_event(socket))
    return [event for event in events if event["type"] != "level"]


def test_a_word_is_taught_heard_and_forgotten(recognizer: Recognizer, tmp_path: Path) -> None:
    async def check() -> None:
        made = ListenerFactory(recognizer, threshold={"yes": 0.9, OWN: 0.1})  # as a file that names the own word
        announced: list[Any] = []
        async with served(made=made, announce=announced.append) as server, socket_of(server) as socket:
            ready = await next_event(socket)
            assert ready["own"] == []
            assert OWN not in ready["thresholds"]
            events = await taught(socket, pcm(recording(*[OWN] * 6)))
            assert [event["type"] for event in events] == ["teaching", *["recorded"] * TIMES, "taught", "stopped"]
            assert [event["n"] for event in events[1:-2]] == [1, 2, 3, 4, 5]
            assert events[-2]["forecast"]["n_recordings"] == TIMES
            assert events[-2]["own"] == [OWN]
            assert len(list((tmp_path / "own").rglob("*.wav"))) == TIMES
            assert words_of(await heard_by(socket, pcm(recording(OWN)))) == [OWN]

            async with socket_of(server) as other:
                assert (await next_event(other))["own"] == [OWN], "everybody may ask for it"
                await socket.send(json.dumps({"type": "forget", "word": OWN}))
                forgotten = await next_event(socket)
                assert (forgotten["type"], forgotten["own"]) == ("forgotten", [])
                told = await next_event(other)
                assert (told["type"], told["own"], OWN in told["thresholds"]) == ("offered", [], False)
            assert words_of(await heard_by(socket, pcm(recording(OWN)))) == []
            assert not list((tmp_path / "own").rglob("*.wav"))
            assert len(announced) == 2
            assert OWN in announced[0]
            assert OWN not in announced[1]

    run(check)


async def heard_by(socket: Any, audio: bytes) -> list[dict[str, Any]]:
    sending = asyncio.create_task(send_all(socket, audio, 9600, rate_hz=RATE_HZ))
    events = [await next_event(socket)]
    while events[-1]["type"] != "stopped":
        events.append(await next_event(socket))
    await sending
    return events


def test_a_recording_that_is_no_good_says_why_and_does_not_count(recognizer: Recognizer) -> None:
    async def check() -> None:
        async with served(made=ListenerFactory(recognizer)) as server, socket_of(server) as socket:
            await next_event(socket)
            sentence = "this is a long sentence that is certainly longer than a word can be"
            events = await taught(socket, pcm(recording(OWN, sentence, OWN)), times=2)
            recorded = [(event["n"], event["fault"]) for event in events if event["type"] == "recorded"]
            assert [n for n, _ in recorded] == [1, 1, 2]
            assert recorded[1][1].startswith("too long")
            assert recorded[0][1] is recorded[2][1] is None

    run(check)


def test_a_lesson_that_is_ended_early_leaves_nothing(recognizer: Recognizer, tmp_path: Path) -> None:
    async def check() -> None:
        async with served(made=ListenerFactory(recognizer)) as server, socket_of(server) as socket:
            await next_event(socket)
            events = await taught(socket, pcm(recording(OWN, OWN)))
            assert "taught" not in [event["type"] for event in events]

    run(check)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"word": "../../left"}, "can't be the name"),
        ({"word": ""}, "can't be the name"),
        ({"times": 0}, "0 recordings"),
        ({"times": 1000}, "1000 recordings"),
    ],
    ids=str,
)
def test_wrong_lessons_are_refused(recognizer: Recognizer, wrong: dict[str, Any], said: str) -> None:
    async def check() -> None:
        async with served(made=ListenerFactory(recognizer)) as server, socket_of(server) as socket:
            await next_event(socket)
            (event,) = await taught(socket, b"", **({"word": OWN} | wrong))
            assert said in event["message"]
            await socket.send(json.dumps({"type": "forget", "word": "computer"}))
            assert "no own word" in (await next_event(socket))["message"]

    run(check)


def test_nobody_teaches_where_it_is_not_wanted() -> None:
    without = Recognizer.load()
    assert not can_learn(without), "as with --no-own"

    async def check() -> None:
        async with served(made=ListenerFactory(without)) as server, socket_of(server) as socket:
            assert (await next_event(socket))["own"] is None
            (event,) = await taught(socket, b"")
            assert "can't be taught here" in event["message"]

    run(check)


@pytest.mark.parametrize("size", [96, 1000, 100_000])
def test_where_a_lesson_is_cut_changes_nothing(recognizer: Recognizer, size: int) -> None:
    audio = pcm(recording(OWN, OWN))
    lesson = ClientLesson(recognizer, OWN, 5, PcmDecoder(RATE_HZ))
    found = [one for begin in range(0, len(audio), size) for one in lesson.feed(audio[begin : begin + size])]
    assert [(one.n, one.fault) for one in found] == [(1, None), (2, None)]


def test_clients_that_teach_at_once_both_teach(recognizer: Recognizer) -> None:
    audio, names = pcm(recording(OWN, OWN)), ("first", "second")
    lessons = [ClientLesson(recognizer, name, 2, PcmDecoder(RATE_HZ)) for name in names]
    for lesson in lessons:
        lesson.feed(audio)
    with ThreadPoolExecutor() as threads:
        forecasts = list(threads.map(ClientLesson.learn, lessons))
    assert [found.word for found in forecasts] == list(names)
    recognizer.look_again()
    assert set(names) < set(recognizer.words)


def test_a_text_of_home_assistant_holds_own_words(recognizer: Recognizer) -> None:
    lesson = ClientLesson(recognizer, OWN, 3, PcmDecoder(RATE_HZ))
    lesson.feed(pcm(recording(*[OWN] * 3)))
    lesson.learn()
    published: list[str] = []
    server = WyomingServer(
        "tcp://127.0.0.1:0", ListenerFactory(recognizer), factory("connected"),
        publish=lambda detection: published.append(detection.word),
    )  # fmt: skip
    stream = TextStream(server, RATE_HZ, 2, 1)
    assert stream.feed(pcm(recording("left", OWN)), None) == []
    (answer,) = stream.finish()
    assert answer.event().data["text"].split() == published
    assert published.count(OWN) == 1
    assert published[-1] == OWN


@needs_chromium
def test_a_word_is_taught_on_the_page(recognizer: Recognizer, tmp_path: Path) -> None:
    microphone = tmp_path / "microphone.wav"
    soundfile.write(microphone, recording(*[OWN] * 5), RATE_HZ, subtype="PCM_16")
    with served_in_thread(Access("127.0.0.1", 0), recognizer) as server, chromium(microphone) as browser:
        opened(browser, server.url)
        browser.find_element("css selector", "#teach summary").click()
        browser.find_element("id", "name").send_keys(OWN)
        browser.find_element("css selector", "#times option").click()
        browser.find_element("id", "name").submit()
        browser.implicitly_wait(PATIENCE_S)
        assert browser.find_element("css selector", "#own li").text.startswith(OWN)
        assert "is recognised from now on" in text(browser, "taught")
        assert "false alarms" in text(browser, "forecast")
        assert browser.find_element("css selector", f"#words [data-word={OWN}]")
        assert browser.find_element("css selector", f"#log tr.detection[data-word={OWN}]"), (
            "said once more, it is heard"
        )
        browser.find_element("css selector", "#own button").click()
        browser.switch_to.alert.accept()
        browser.find_element("css selector", "#own:empty")
        browser.implicitly_wait(0)
        assert not browser.find_elements("css selector", f"#words [data-word={OWN}]")
        assert browser.get_log("browser") == []
