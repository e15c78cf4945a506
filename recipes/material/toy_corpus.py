"""Write a tiny data set in the official layout: `python -m recipes.material.toy_corpus DIR`.

It serves smoke.yaml, the notebooks and the tests.  It is synthesised with numpy: each word is a particular glide of two
tones over a faint hiss.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bird")
PARTS = {"training": 12, "validation": 3, "testing": 3}
"""Number of speakers of each part; each says every word once."""


def glide(word: str, rng: np.random.Generator) -> np.ndarray:
    """One second with two tones that glide from the word's first to its second pair of pitches."""
    recipe = np.random.default_rng(WORDS.index(word))
    pairs = recipe.uniform([300, 1000], [900, 3500], size=(2, 2)) * rng.uniform(0.94, 1.06)
    length, start = round(rng.uniform(0.4, 0.55) * RATE), round(rng.uniform(0.1, 0.35) * RATE)
    pitch = np.linspace(pairs[0], pairs[1], length)
    spoken = np.sin(2 * np.pi * np.cumsum(pitch, 0) / RATE).sum(1) * np.hanning(length)
    clip = 0.002 * rng.standard_normal(RATE)
    clip[start : start + length] += rng.uniform(0.1, 0.4) * spoken
    return clip


def write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="PCM_16")


def make_corpus(root: Path, seed: int = 0) -> Path:
    """Write the data set under `root`; returns `root`."""
    rng = np.random.default_rng(seed)
    folder = root / "SpeechCommands/speech_commands_v0.02"
    for part, n_speakers in PARTS.items():
        names = []
        for _ in range(n_speakers):
            speaker = f"{rng.integers(16**8):08x}"
            for word in WORDS:
                names.append(f"{word}/{speaker}_nohash_0.wav")
                write(folder / names[-1], glide(word, rng))
        if part != "training":
            (folder / f"{part}_list.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    for number in range(2):
        write(folder / "_background_noise_" / f"hiss{number}.wav", 0.05 * rng.standard_normal(4 * RATE))
    for number in range(8):
        write(root / "noise/made" / f"rumble{number}.wav", 0.05 * np.cumsum(rng.standard_normal(3 * RATE)) / 100)
    for number in range(2):
        write(
            root / "rooms/made" / f"room{number}_ch0.wav",
            rng.standard_normal(4000) * np.exp(-np.arange(4000) / 500) / 4,
        )
    archive = root / "speech_commands_test_set_v0.02"
    for word in WORDS[:10]:
        write(archive / word / "a.wav", glide(word, rng))
    write(archive / "_unknown_" / "a.wav", glide("bird", rng))
    write(archive / "_silence_" / "a.wav", 0.01 * rng.standard_normal(RATE))
    return root


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.material.toy_corpus", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, metavar="DIR", help="the folder to write, --data.root of the recipe")
    print(f"{make_corpus(parser.parse_args(argv).root)}: {len(WORDS)} words by {sum(PARTS.values())} speakers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
