"""The page in real Chromium, whose fake microphone plays the demo recording."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("websockets", reason="needs the extra `serve`")
pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from recipes.study.screenshot import chromium
from speech.listen import DEMO
from speech.own.words import OwnWords
from speech.recognizer import Recognizer
from speech.segment import ListenerConfig
from speech.serve.page import PageServer
from speech.serve.security import Access, Limits
from speech.serve.streams import ListenerFactory
from speech.sound.files import read

TEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
PATIENCE_S = 40

needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromium-driver"
)
pytestmark = needs_chromium


@contextmanager
def served_in_thread(
    access: Access, recognizer: Recognizer | None = None, after_talk_s: float = 1.8
) -> Iterator[PageServer]:
    """A server in a thread of its own, by default with the shipped bundle."""
    made = ListenerFactory(recognizer or Recognizer.load(), config=ListenerConfig(after_talk_s=after_talk_s))
    server = PageServer(made, access, Limits(), model="commands")
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with server:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_in_thread(Access("127.0.0.1", 0), after_talk_s=1.85) as server:
        yield server.url


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("microphone") / "demo.wav"
    soundfile.write(path, read(DEMO, 48000), 48000, subtype="PCM_16")
    return path


@pytest.fixture
def browser(recording: Path) -> Iterator[WebDriver]:
    with chromium(recording) as driver:
        yield driver


def until(browser: WebDriver, condition: Callable[[WebDriver], object]) -> None:
    WebDriverWait(browser, PATIENCE_S, poll_frequency=0.1).until(condition)


def opened(browser: WebDriver, url: str) -> None:
    browser.get(url)
    until(browser, lambda b: b.find_element(By.ID, "listen").is_enabled())


def listening(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.find_element(By.ID, "listen").click()
    until(browser, logged)


def logged(browser: WebDriver, kind: str = "detection") -> list[str]:
    """The words in the log, the oldest first."""
    rows = browser.find_elements(By.CSS_SELECTOR, f"#log tr.{kind}")
    return [str(row.get_attribute("data-word")) for row in reversed(rows)]


def text(browser: WebDriver, name: str) -> str:
    return str(browser.find_element(By.ID, name).get_attribute("textContent"))


def test_the_ten_words_of_the_demo_are_shown_in_order_with_the_keyboard_alone(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.execute_script("""
        window.shown = []; window.reached = [];
        new MutationObserver(() => shown.push(at("word").textContent)).observe(at("word"), { childList: true });
        document.querySelector("details").open = true;
        addEventListener("focusin", ({ target }) => reached.push(target.id || target.ariaLabel));""")
    keyboard = browser.switch_to.active_element
    assert keyboard.get_attribute("id") == "listen", "the button has the focus from the beginning"
    keyboard.send_keys(Keys.SPACE)
    until(browser, lambda b: logged(b, "rejection"))  # the sentence after the words
    assert browser.execute_script("return shown.filter((word) => word)") == TEN, "in large type"
    assert logged(browser) == TEN
    assert "longer than a command" in text(browser, "note")
    assert text(browser, "listen") == "Stop"
    keyboard.send_keys(Keys.SPACE)
    until(browser, lambda b: text(b, "listen") == "Listen")
    keyboard.send_keys(Keys.TAB * 60)
    reached = set(browser.execute_script("return reached"))
    assert {"theme", "save", "clear", "all", "none", "every", "after", "threshold of left"} <= reached
    unnamed = browser.execute_script("""
        return [...document.querySelectorAll("button, input, canvas")].filter((element) =>
            !(element.ariaLabel || element.textContent.trim() || element.labels?.length)
        ).map((element) => element.outerHTML)""")
    assert unnamed == [], "a screen reader would have nothing to say"
    requests = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in requests if not name.startswith("blob:")] == [], "nothing else is loaded"
    assert browser.get_log("browser") == []


def test_settings_are_used_and_kept_with_the_log(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.execute_script("""
        socket.send = (message) => { window.sent ??= message; WebSocket.prototype.send.call(socket, message); };
        document.querySelector("[data-word=yes] input[type=checkbox]").click();
        const slider = document.querySelector("[data-word=no] input[type=range]");
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));""")
    browser.find_element(By.ID, "listen").click()
    until(browser, lambda b: "up" in logged(b))
    assert logged(browser) == ["up"]
    start = browser.execute_script("return JSON.parse(sent)")
    assert "after_talk_s" not in start, "the server's own, exactly, where nobody moved the slider"
    assert start["thresholds"] == {"no": 1}
    opened(browser, url)  # as after a reload
    assert logged(browser, "rejection") == ["yes", "no"]
    raised, off = (row.text for row in browser.find_elements(By.CSS_SELECTOR, "#log .rejection"))
    assert "switched off" in off
    assert "1.00 needed" in raised
    assert browser.execute_script("return [wordsOn().includes('yes'), threshold('no')]") == [False, 1]
    assert text(browser, "after-value") == "1.85 s"
    browser.execute_script("at('after').value = 1.8; at('after').oninput()")
    assert browser.execute_script("return settings.after_talk_s") == 1.8


FAINT = """
    const linear = (v) => v <= 10.3 ? v / 3295 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3)
        .reduce((sum, v, n) => sum + linear(v) * [0.2126, 0.7152, 0.0722][n], 0.05);
    const behind = (element) => {
        const own = getComputedStyle(element).backgroundColor;
        return own.endsWith(", 0)") ? behind(element.parentElement) : light(own);
    };
    const isFaint = (colour, least, below) => {
        const both = [light(colour), behind(below)];
        return Math.max(...both) < least * Math.min(...both);
    };
    return [...document.body.querySelectorAll("*")].filter((element) => {
        const { color, borderTopColor } = getComputedStyle(element), below = element.parentElement;
        const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        return element.offsetParent && ((isText && isFaint(color, 4.5, element))
            || (element.matches("#name, select, button:not(.plain)") && isFaint(borderTopColor, 3, below))
            || (element.id === "name" && isFaint(getComputedStyle(element, "::placeholder").color, 4.5, element)));
    }).map((element) => element.outerHTML);"""
"""Elements whose contrast is below what WCAG 2.2 asks of text (4.5) and of the borders of controls (3)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_at_each_width_in_the_light_and_in_the_dark(browser: WebDriver, url: str, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for width in (320, 390, 1280):
        screen = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        opened(browser, url)
        browser.execute_script("""
            at("teach").hidden = at("use").hidden = at("utterance").hidden = at("checked").parentElement.hidden = false;
            document.querySelectorAll("details").forEach((details) => { details.name = ""; details.open = true; });
            stage("extraordinarily", "old", "note"); tell("wrong");
            log({ type: "rejection", word: "kitchen-radio", reason: "not in the grammar", time: 0 });""")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script("return at('say').getBoundingClientRect().bottom") < 800, "words above the fold"
        assert browser.execute_script("return at('word').clientHeight") < 250, "a long word is on one line"
    assert browser.execute_script(FAINT) == []
    brightness = browser.execute_script("return rgb('--paper')[0] - rgb('--ink')[0]")
    assert brightness > 100 if scheme == "light" else brightness < -100
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script("return rgb('--paper')[0] - rgb('--ink')[0]") > 100, "light was chosen"


def test_each_word_is_asked_for_once_and_thresholds_are_proposed(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.execute_script("""
        change({ off: known().filter((word) => !["yes", "no"].includes(word)), thresholds: { yes: 1 } });
        at("check").click();""")
    until(browser, lambda b: "2 of 2 words were understood" in text(b, "verdict"))
    assert logged(browser) == [], "nothing is reported meanwhile"
    browser.execute_script("at('use').click()")
    assert browser.execute_script("return Object.keys(settings.thresholds)") == ["yes"], "only yes was unsure"
    assert 0.3 <= browser.execute_script("return threshold('yes')") < 1
    until(browser, lambda b: text(b, "listen") == "Listen")


def test_what_is_inside_the_network_is_drawn(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.find_element(By.CSS_SELECTOR, "#network summary").click()
    browser.execute_script("""
        const image = (columns, rows, value) => ({ shape: [columns, rows], middles_s: [0.1, 0.9],
            values: btoa(String.fromCharCode(...Array.from({ length: columns * rows }, (_, n) => value(n)))) });
        const gates = (name, value) => ({ name, ...Object.fromEntries(
            ["forget", "input", "output"].map((gate) => [gate, image(9, 4, value)])) });
        handlers.utterance({ start_s: 1, end_s: 2, at_s: 2, scores: { left: 0.6, _unknown_: 0.4 },
            waveform: btoa(String.fromCharCode(...Array.from({ length: 960 }, (_, n) => n % 2 ? 60 : 196))),
            mfcc: image(9, 4, (n) => 28 * (n % 9)), attention: [image(9, 1, (n) => 28 * n)],
            gates: [gates("l0", (n) => (n % 4) * 80), gates("l0_reverse", () => 0)] });""")
    colours = """
        const canvas = document.getElementById(arguments[0]);
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(Array.from({ length: data.length / 4 }, (_, n) => data.slice(4 * n, 4 * n + 4).join())).size;"""
    for name in ("wave", "mfcc", "attention", "forget", "input", "output"):
        assert browser.execute_script(colours, name) > 1, name
    layers = browser.find_elements(By.CSS_SELECTOR, "#layers label")
    assert [layer.text for layer in layers] == ["layer 1, forward", "layer 1, backward"]
    before = browser.execute_script(colours, "forget")
    layers[1].find_element(By.TAG_NAME, "input").send_keys(Keys.SPACE)
    assert browser.execute_script(colours, "forget") < before
    assert browser.find_element(By.ID, "scores").text.split() == ["left", "0.60", "other", "0.40"]


def test_the_token_in_the_address_opens_the_page_and_nothing_else_does(browser: WebDriver) -> None:
    with served_in_thread(Access("0.0.0.0", 0, "right-token")) as server:
        address = f"http://127.0.0.1:{server.access.port}/"
        browser.get(address)
        until(browser, lambda b: "a token is needed: it is in the address" in text(b, "status"))
        browser.get(f"{address}#right-token")  # the page notices
        until(browser, lambda b: "20 words" in text(b, "about"))


def test_a_server_that_ends_is_noticed_and_found_again_when_it_is_back(browser: WebDriver) -> None:
    with served_in_thread(Access("127.0.0.1", 0)) as server:
        listening(browser, server.url)
    until(browser, lambda b: "connection was lost" in text(b, "status") or "can't be reached" in text(b, "status"))
    assert text(browser, "listen") == "Stop", "it is still wanted"
    browser.execute_script("levels = []")
    with served_in_thread(server.access):
        until(browser, lambda b: "Listening again" in text(b, "status") and b.execute_script("return levels.length"))


def test_a_pause_by_the_browser_and_an_error_of_the_server_are_said_and_it_goes_on(
    browser: WebDriver, url: str
) -> None:
    listening(browser, url)
    browser.execute_script("audio.resume = () => {}; audio.suspend()")  # as while the phone is locked
    until(browser, lambda b: "paused the microphone" in text(b, "status"))
    browser.execute_script("levels = []; delete audio.resume; dispatchEvent(new Event('focus'))")
    until(browser, lambda b: "Listening again" in text(b, "status") and b.execute_script("return levels.length"))
    browser.execute_script("media.getTracks()[0].stop(); again()")  # as if it was unplugged, and is back
    until(browser, lambda b: b.execute_script("return isStreaming && media?.active && trouble === ''"))
    browser.execute_script("socket.send('nonsense')")  # for which the server disconnects
    until(browser, lambda b: "Listening again" in text(b, "status") and "must be JSON" in text(b, "status"))


def test_two_tabs_offer_the_same_words(browser: WebDriver, tmp_path: Path) -> None:
    recognizer = Recognizer.load()
    own = OwnWords.load(tmp_path)
    sound = read(DEMO, 16000)[: 16000 * 2]
    own.add("lamp", [sound, np.roll(sound, 99), 0.9 * sound])
    recognizer.hear_also(own)
    with served_in_thread(Access("127.0.0.1", 0), recognizer) as server:
        listening(browser, server.url)
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        opened(browser, server.url)
        browser.find_element(By.CSS_SELECTOR, "#teach summary").click()
        browser.find_element(By.CSS_SELECTOR, "#own button").click()
        assert "lamp" in browser.switch_to.alert.text, "it asks before it forgets"
        browser.switch_to.alert.accept()
        until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, "#own li"))
        browser.switch_to.window(first)
        until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, "#words [data-word=lamp]"))
        until(browser, lambda b: b.execute_script("return isStreaming && levels.length"))
        assert "lost" not in text(browser, "status"), "a new stream without the word"
