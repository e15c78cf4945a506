"""The picture of the page in the README: `python -m recipes.material.screenshot`; needs chromium and selenium."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import soundfile
from selenium import webdriver

from speech.listen import DEMO
from speech.sound.files import read

PICTURE, LISTEN_S, RATE_HZ = Path("docs/pictures/page.png"), 6.5, 48000
FLAGS = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000", "hide-scrollbars",
         "use-fake-ui-for-media-stream", "use-fake-device-for-media-stream")  # fmt: skip


@contextmanager
def chromium(microphone: Path) -> Iterator[webdriver.Chrome]:
    """Chromium whose microphone begins the recording when it is opened."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"use-file-for-fake-audio-capture={microphone}%noloop"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        yield driver


if __name__ == "__main__":
    serve = [sys.executable, "-m", "speech.serve", "page", "--port", "0", "--no-own"]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        soundfile.write(demo := Path(folder) / "demo.wav", read(DEMO, RATE_HZ), RATE_HZ)
        url = next(line for line in server.stderr or () if "http" in line).split()[2].rstrip(";")
        with chromium(demo) as browser:
            browser.get(url)
            time.sleep(1)
            browser.find_element("id", "listen").click()
            time.sleep(LISTEN_S)
            PICTURE.parent.mkdir(exist_ok=True)
            browser.save_screenshot(str(PICTURE))
        server.terminate()
