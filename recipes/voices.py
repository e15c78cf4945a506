"""Synthesise training words and speech with espeak-ng and flite: `python -m recipes.voices DIR`.

Writes DIR/synthetic/<word>/<voice>_nohash_<n>.wav (16 kHz, mono, at most one second) and
DIR/synthetic_sentences/<voice>_<n>.wav (running speech without a command), which the training recipe takes up by
itself.  `on` and `off` get most: the shared recordings hold only 200 of each.
"""

import argparse
import io
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech.errors import DataError, told
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
RUNNING = """
the a an this that these some any each my your his her its our their i you he she it we they who what when where
why how is are was were be been being am has had have do does did will would could should can may might must
and but so because if while after before during until since through between under over against without within
about across along around behind beside beyond near from with by at as than then there here again always never
often soon today later once maybe perhaps almost quite very really only just even still already also too
time year day way man woman child world life hand place week case point company number group problem fact
money water room mother father area story month book eye job business side kind head house service friend
hour game line member law car city community name president team minute idea body information back parent face
level door health person art war history party result change reason research girl boy food street market table
letter paper picture garden river mountain summer winter dinner breakfast kitchen window doctor teacher school
say get make know think take see come want look use find give tell work call try ask need feel become leave put
mean keep begin seem help talk turn start show hear play run move like live believe hold bring happen write
provide sit stand lose pay meet include continue set learn lead understand watch follow create speak read
allow add spend grow open walk win offer remember love consider appear buy wait serve die send expect build stay
fall cut reach kill remain new good high old great big small large national young different black long little
important political bad white real best social able human local sure early whole clear recent certain personal
won't don't can't upset upon nobody notice known noble among honest lonely coffin topple stopped yesterday leftover
rightly golden goat goes doorknob downtown unknown snowing ongoing offside bright height ghost
"""
"""What running speech is put together from: everyday words, and some that hold the sound of a command."""
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


def sentence(target: Path, number: int) -> None:
    """Write one utterance of six to twelve random words, told apart by its number."""
    rng = random.Random(f"sentence {number}")
    words = rng.sample(RUNNING.split(), rng.randint(6, 12))
    if rng.random() < 0.4:
        words.insert(rng.randrange(1, len(words)), ",")  # a pause
    voice, wav = rng.choice((espeak, espeak, flite))(" ".join(words), rng)
    waveform = decode(wav)
    if len(waveform) < CLIP:
        return  # a voice that says nothing
    folder = target / "synthetic_sentences"
    folder.mkdir(parents=True, exist_ok=True)
    waveform *= 0.5 / np.abs(waveform).max()
    soundfile.write(folder / f"{voice}_{number}.wav", waveform, SAMPLE_RATE_HZ, subtype="PCM_16")


def synthesise_all(target: Path, counts: Mapping[str, int], n_sentences: int) -> None:
    """So many clips of each word, and sentences, on all cores.

    Raises:
        DataError: espeak-ng or flite is missing.
    """
    for program in ("espeak-ng", "flite"):
        if not shutil.which(program):
            raise DataError(f"{program} is missing: install espeak-ng and flite")
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(synthesise, target, word, n) for word, count in counts.items() for n in range(count)]
        jobs += [pool.submit(sentence, target, n) for n in range(n_sentences)]
        for done, job in enumerate(jobs, 1):
            job.result()
            print(f"\r{done}/{len(jobs)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.voices", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, metavar="DIR", help="the data folder, --data.root of the training recipe")
    parser.add_argument("--scarce", type=int, default=600, help="clips each of on and off (default 600)")
    parser.add_argument("--known", type=int, default=80, help="clips of each other word of the vocabulary (default 80)")
    parser.add_argument("--outside", type=int, default=25, help="clips of each word outside it (default 25)")
    parser.add_argument("--sentences", type=int, default=1500, help="utterances of running speech (default 1500)")
    arguments = parser.parse_args(argv)
    counts = dict.fromkeys(OUTSIDE.split(), arguments.outside)
    counts |= dict.fromkeys(KEYWORDS + OTHERS, arguments.known)
    counts |= dict.fromkeys(SCARCE, arguments.scarce)
    return told(lambda: synthesise_all(arguments.root, counts, arguments.sentences))


if __name__ == "__main__":
    sys.exit(main())
