"""The page in real Chromium, whose fake microphone plays the demo recording."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("websockets", reason="needs the extra `serve`")
pytest.importorskip("selenium", reason="needs selenium")

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from speech.listen import DEMO
from speech.recognizer import Recognizer
from speech.serve.page import PageServer
from speech.serve.security import Access, Limits
from speech.serve.streams import Hearing, Workers
from speech.sound.files import read

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
TEN = ["yes", "no", "up", "down", "left", "right", "stop", "go", "on", "off"]
DEMO_S = 17
PATIENCE_S = 40

needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver")
pytestmark = needs_chromium


@contextmanager
def served_in_thread(access: Access, recognizer: Recognizer | None = None) -> Iterator[PageServer]:
    """A server in a thread of its own, by default with the shipped bundle."""
    recognizer = recognizer or Recognizer.load()
    workers = Workers()
    server = PageServer(Hearing(recognizer), access, Limits(), workers, lambda _: None, "commands")
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
        workers.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_in_thread(Access("127.0.0.1", 0)) as server:
        yield server.url


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("microphone") / "demo.wav"
    soundfile.write(path, read(DEMO, 48000), 48000, subtype="PCM_16")
    return path


@contextmanager
def chromium(microphone: Path) -> Iterator[WebDriver]:
    """Chromium whose microphone begins the recording when it is opened."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000",
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(recording: Path) -> Iterator[WebDriver]:
    with chromium(recording) as driver:
        yield driver


def opened(browser: WebDriver, url: str) -> None:
    browser.get(url)
    WebDriverWait(browser, PATIENCE_S).until(lambda b: b.find_element(By.ID, "listen").is_enabled())


def logged(browser: WebDriver, kind: str = "detection") -> list[str]:
    """The words in the log, the oldest first."""
    rows = browser.find_elements(By.CSS_SELECTOR, f"#log tr.{kind}")
    return [str(row.get_attribute("data-word")) for row in reversed(rows)]


def text(browser: WebDriver, name: str) -> str:
    found: str = browser.find_element(By.ID, name).text
    return found


def test_the_ten_words_of_the_demo_are_shown_in_order(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.find_element(By.ID, "listen").click()
    shown: list[str] = []

    def collect(browser: WebDriver) -> bool:
        word = text(browser, "word")
        if word in TEN and word not in shown:
            shown.append(word)
        return bool(logged(browser, "rejection"))  # the sentence after the words

    WebDriverWait(browser, PATIENCE_S, poll_frequency=0.1).until(collect)
    assert shown == TEN, "in large type"
    assert logged(browser) == TEN
    assert "longer than a command" in text(browser, "note")
    requests = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in requests if not name.startswith("blob:")] == [], "nothing else is loaded"
    assert browser.get_log("browser") == []


def test_it_works_with_the_keyboard_alone(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    keyboard = browser.switch_to.active_element
    assert keyboard.get_attribute("id") == "listen", "the button has the focus from the beginning"
    keyboard.send_keys(Keys.SPACE)
    WebDriverWait(browser, PATIENCE_S).until(lambda b: logged(b) == ["yes"])
    assert text(browser, "listen") == "Stop"
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    WebDriverWait(browser, PATIENCE_S).until(lambda b: text(b, "listen") == "Listen")
    reached = set()
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.execute_script("return document.activeElement.id || document.activeElement.ariaLabel"))
    assert {"theme", "save", "clear", "all", "none", "every", "after", "threshold of left"} <= reached
    unnamed = browser.execute_script("""
        return [...document.querySelectorAll("button, input, canvas")].filter((element) =>
            !(element.ariaLabel || element.textContent.trim() || element.labels?.length)
        ).map((element) => element.outerHTML)""")
    assert unnamed == [], "a screen reader would have nothing to say"


def test_words_can_be_switched_off_and_thresholds_raised(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.find_element(By.CSS_SELECTOR, "[data-word=yes] input[type=checkbox]").click()
    browser.execute_script("""
        const slider = document.querySelector("[data-word=no] input[type=range]");
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));""")
    browser.find_element(By.ID, "listen").click()
    WebDriverWait(browser, PATIENCE_S).until(lambda b: "up" in logged(b))
    assert logged(browser) == ["up"]
    assert logged(browser, "rejection") == ["yes", "no"]
    outcomes = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#log tr.rejection td:last-child")]
    assert outcomes[1] == "switched off"
    assert "1.00 needed" in outcomes[0]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_on_a_narrow_screen(browser: WebDriver, url: str, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    opened(browser, url)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_it_follows_the_system_into_the_dark(browser: WebDriver, url: str) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        opened(browser, url)
        brightness[scheme] = browser.execute_script("return rgb('--paper')[0] - rgb('--ink')[0]")
    assert brightness["light"] > 100
    assert brightness["dark"] < -100
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script("return rgb('--paper')[0] - rgb('--ink')[0]") > 100, "light was chosen"


def test_what_is_inside_the_network_is_drawn(browser: WebDriver, url: str) -> None:
    opened(browser, url)
    browser.execute_script("""
        const image = (columns, rows, value) => ({ shape: [columns, rows], middles_s: [0.1, 0.9],
            values: btoa(String.fromCharCode(...Array.from({ length: columns * rows }, (_, n) => value(n)))) });
        const gates = (name, value) => ({ name, ...Object.fromEntries(
            ["forget", "input", "output"].map((gate) => [gate, image(9, 4, value)])) });
        receive({ type: "utterance", start_s: 1, end_s: 2, at_s: 2, scores: { left: 0.6, _unknown_: 0.4 },
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
    assert [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#scores .label")] == ["left", "other"]


def test_the_token_in_the_address_opens_the_page_and_nothing_else_does(browser: WebDriver) -> None:
    with served_in_thread(Access("0.0.0.0", 0, "right-token")) as server:
        address = f"http://127.0.0.1:{server.access.port}/"
        opened(browser, f"{address}#right-token")
        assert "20 words" in text(browser, "about")
        browser.get("about:blank")
        browser.get(address)
        WebDriverWait(browser, PATIENCE_S).until(lambda b: "can't be reached" in text(b, "status"))


def test_a_server_that_ends_is_noticed(browser: WebDriver) -> None:
    with served_in_thread(Access("127.0.0.1", 0)) as server:
        opened(browser, server.url)
        browser.find_element(By.ID, "listen").click()
        WebDriverWait(browser, PATIENCE_S).until(lambda b: logged(b))
    WebDriverWait(browser, PATIENCE_S).until(lambda b: "connection was lost" in text(b, "status"))
    assert text(browser, "listen") == "Listen"
