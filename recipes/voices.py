"""Synthesise training words with espeak-ng and flite: `python -m recipes.voices DIR`.

Writes DIR/synthetic/<word>/<voice>_nohash_<n>.wav (16 kHz, mono, at most one second), which the training recipe
takes up by itself.  `on` and `off` get most: the shared recordings hold only 200 of each.
"""

import argparse
import io
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech.errors import DataError, SpeechError
from speech.training.data import CLIP, KEYWORDS, SAMPLE_RATE_HZ, extent

SCARCE = ("on", "off")
OTHERS = ("zero", "one", "two", "three", "four", "five", "bed", "cat", "happy", "eight")
OUTSIDE = """
six seven nine bird dog house marvin sheila tree wow backward forward follow learn visual yet yeah less guess
yesterday snow nose note nor new now nope cup puppy upper apple pup sup town done dawn gown brown drown
lift laugh let leaf felt light ride bright fright rice own an in john gone con horn aunt ann honor
onto wrong long song awful often offer of or cough soft loft office ought half huff have tough step shop stock
stuff start top spot goat got good goal ago toe joe oh low show hello okay please play pause music
lamp door window kitchen computer water table morning evening weather hundred ten seventy maybe thank sorry
because people about other download update online turn open close volume television radio
robot
"""
"""The rest of Speech Commands, words that nearly sound like a command (no homophones), and everyday words."""
ACCENTS = (*["en-us"] * 3, "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")

Waveform = NDArray[np.float32]


@cache
def espeak_variants() -> list[str]:
    """Names of espeak-ng's voice variants, the whispering ones left out."""
    done = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True)
    names = [line.split()[-1].removeprefix("!v/") for line in done.stdout.splitlines()[1:]]
    return [name for name in names if "whisper" not in name.lower()]


def espeak(word: str, rng: random.Random) -> tuple[str, bytes]:
    """One word by a random espeak-ng voice variant; name of the voice and a WAV file."""
    variant = rng.choice(espeak_variants())
    accent = rng.choice(ACCENTS)
    speed, pitch = rng.randint(110, 210), rng.randint(15, 85)
    command = ["espeak-ng", "-v", f"{accent}+{variant}", "-s", str(speed), "-p", str(pitch), "--stdout", word]
    return f"espeak-{accent}-{variant}", subprocess.run(command, check=True, capture_output=True).stdout


def flite(word: str, rng: random.Random) -> tuple[str, bytes]:
    """One word by a flite voice at a random tempo and pitch."""
    voice = rng.choice(FLITE_VOICES)
    settings = {
        "duration_stretch": round(rng.uniform(0.75, 1.4), 2),
        "int_f0_target_mean": rng.randint(80, 240),
        "int_f0_target_stddev": rng.randint(8, 30),
    }
    command = ["flite", "-voice", voice, *(x for k, v in settings.items() for x in ("--setf", f"{k}={v}"))]
    command += ["-t", word, "-o", "/dev/stdout"]
    return f"flite-{voice}", subprocess.run(command, check=True, capture_output=True).stdout


def decode(wav: bytes) -> Waveform:
    """A synthesiser's WAV (its header may not know the length) -> 16 kHz, trimmed to what is spoken."""
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    waveform = soxr.resample(samples[:, 0], rate, SAMPLE_RATE_HZ).astype(np.float32)
    start, end = extent(waveform)
    return waveform[max(0, start - 800) : end + 1600]


def synthesise(target: Path, word: str, number: int) -> None:
    """Write one clip; the same word and number always give the same voice and settings."""
    rng = random.Random(f"{word} {number}")
    engines: list[Callable[[str, random.Random], tuple[str, bytes]]] = [espeak, espeak, flite]
    voice, wav = rng.choice(engines)(word, rng)
    waveform = decode(wav)
    if len(waveform) < CLIP // 10:
        return  # a voice that says nothing
    folder = target / "synthetic" / word
    folder.mkdir(parents=True, exist_ok=True)
    level = 0.5 / (np.abs(waveform).max() + 1e-6)
    soundfile.write(folder / f"{voice}_nohash_{number}.wav", waveform[:CLIP] * level, SAMPLE_RATE_HZ, subtype="PCM_16")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.voices", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, metavar="DIR", help="the data folder, --data.root of the training recipe")
    parser.add_argument("--scarce", type=int, default=600, help="clips each of on and off (default 600)")
    parser.add_argument("--known", type=int, default=80, help="clips of each other word of the vocabulary (default 80)")
    parser.add_argument("--outside", type=int, default=25, help="clips of each word outside it (default 25)")
    arguments = parser.parse_args(argv)
    try:
        for program in ("espeak-ng", "flite"):
            if not shutil.which(program):
                raise DataError(f"{program} is missing: install espeak-ng and flite")
        counts = dict.fromkeys(OUTSIDE, arguments.outside)
        counts |= dict.fromkeys(KEYWORDS + OTHERS, arguments.known)
        counts |= dict.fromkeys(SCARCE, arguments.scarce)
        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(synthesise, arguments.root, w, n) for w, count in counts.items() for n in range(count)]
            for done, job in enumerate(jobs, 1):
                job.result()
                print(f"\r{done}/{len(jobs)} clips", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    except SpeechError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
