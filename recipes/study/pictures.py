"""Make the README's pictures: `python -m recipes.study.pictures docs/pictures`.

One utterance's inside, and the page of speech-serve after the demo recording, in Chromium (Debian: chromium-driver).
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from recipes.study import inspect
from recipes.study.screenshot import photograph_page
from speech.console import DEMO
from speech.errors import exit_status

N_COLOURS = 48


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
