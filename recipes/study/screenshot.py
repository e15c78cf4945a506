"""Chromium whose microphone plays a recording, and a picture of the page of speech-serve in it."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from speech.console import DEMO
from speech.sound.files import read

FLAGS = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "use-fake-ui-for-media-stream", "hide-scrollbars",
         "use-fake-device-for-media-stream")  # fmt: skip
N_WORDS = 5
"""How many words of the demo recording the page shows when it is photographed."""


@contextmanager
def chromium(microphone: Path, size: str = "1280,1000") -> Iterator[webdriver.Chrome]:
    """Chromium (Debian: chromium-driver) whose microphone begins the recording when it is opened."""
    options = webdriver.ChromeOptions()
    options.accept_insecure_certs = True
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"window-size={size}", f"use-file-for-fake-audio-capture={microphone}%noloop"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))  # named: nothing is downloaded
    with webdriver.Chrome(options, service) as browser:
        yield browser


def photograph_page(target: Path) -> None:
    """Start speech-serve and Chromium, let its microphone play the demo recording, and save what the page shows."""
    serve = [sys.executable, "-m", "speech.serve", "page", "--port", "0", "--no-own"]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        soundfile.write(demo := Path(folder) / "demo.wav", read(DEMO, 48000), 48000)
        url = next(found[1] for line in server.stderr or () if (found := re.search(r"serving at (\S+);", line)))
        with chromium(demo, "900,1270") as browser:
            browser.get(url)
            WebDriverWait(browser, 20).until(lambda _: browser.find_element("id", "listen").is_enabled())
            browser.find_element("id", "listen").click()
            heard = f"return at('log').rows.length >= {N_WORDS} && marks.at(-1).end_s + 0.6 < levels.at(-1).at_s"
            WebDriverWait(browser, 60).until(lambda _: browser.execute_script(heard))
            browser.save_screenshot(str(target))
        server.terminate()
