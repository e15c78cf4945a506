"""Make the README's pictures: `python -m recipes.study.pictures docs/pictures`.

One utterance's inside, and the page of speech-serve after the demo recording, in Chromium (Debian: chromium-driver).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from recipes.study import inspect
from speech.console import DEMO
from speech.errors import exit_status
from speech.sound.files import read

N_COLOURS = 48
N_WORDS = 5
"""How many words of the demo recording the page shows when it is photographed."""


def photograph_page(target: Path) -> None:
    """Start speech-serve and Chromium, let its microphone play the demo recording, and save what the page shows."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    command = [sys.executable, "-m", "speech.serve", "page", "--port", "0", "--no-own"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
    ):
        assert server.stderr
        url = next(found[1] for line in server.stderr if (found := re.search(r"serving at (\S+);", line)))
        recording = Path(folder, "demo.wav")
        soundfile.write(recording, np.append(read(DEMO, 48000), np.zeros(48000)), 48000, subtype="PCM_16")
        options = webdriver.ChromeOptions()
        for argument in (
            "--headless=new", "--no-sandbox", "--window-size=900,1250", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={recording}%noloop",
        ):  # fmt: skip
            options.add_argument(argument)
        options.binary_location = str(shutil.which("chromium"))
        browser = webdriver.Chrome(options, Service(str(shutil.which("chromedriver"))))  # named: nothing is downloaded
        try:
            browser.get(url)
            button = browser.find_element(By.ID, "listen")
            WebDriverWait(browser, 20).until(lambda _: button.is_enabled())
            button.click()
            shown = partial(browser.find_elements, By.CSS_SELECTOR, "#log tr.detection")
            WebDriverWait(browser, 60).until(lambda _: len(shown()) >= N_WORDS)
            time.sleep(1)  # it draws
            browser.save_screenshot(str(target))
        finally:
            browser.quit()
            server.terminate()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.study.pictures", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args(argv).folder

    def run() -> int:
        status = inspect.main([str(DEMO), "--at", "6", "--output", str(folder / "utterance.png")])
        photograph_page(folder / "page.png")
        for picture in folder.glob("*.png"):
            Image.open(picture).quantize(N_COLOURS).save(picture, optimize=True)
        return status

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
