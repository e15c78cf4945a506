"""Synthesise training words and speech: `python -m recipes.material.voices DIR`.

Writes DIR/synthetic/<word>/<voice>_nohash_<n>.wav (16 kHz, mono, at most `LONGEST_S`) and
DIR/synthetic_sentences/<voice>_<n>.wav (running speech without a command); training finds both by itself.  `on` and
`off` get the most clips, because the shared recordings hold only 200 of each.  All installed engines are used.
"""

import argparse
import io
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from recipes.data.recordings import read_commands
from recipes.data.sounds import Waveform, extent
from recipes.vocabulary import WORDS
from speech.errors import ConfigError, DataError, exit_status
from speech.segment import SAMPLE_RATE_HZ
from speech.settings import read_text, read_toml

SCARCE = ("on", "off")
TEXTS = read_toml(Path(__file__).with_suffix(".toml"))
OUTSIDE, RUNNING = (str(TEXTS[name]).split() for name in ("outside", "running"))
"""Words outside the vocabulary, and words of the running speech."""
OTHERS = ("zero", "one", "two", "three", "four", "five", "bed", "cat", "happy", "eight")
ACCENTS = (*["en-us"] * 3, "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")

BEFORE_S, AFTER_S = 0.05, 0.1
"""Audio kept before and after the speech."""
SHORTEST_S, LONGEST_S = 0.1, 1.5
"""Range of the length of a word; shorter clips (synthesis failed) and longer ones (too slow) are not written."""
PEAK = 0.5
"""Peak of a recording, relative to full scale."""

Say = Callable[[str, random.Random], tuple[str, Waveform]]
"""Speaks a text with a random voice: name of the voice, trimmed waveform (time,) at `SAMPLE_RATE_HZ`."""


@cache
def espeak_variants() -> list[str]:
    """Names of espeak-ng's voice variants without the whispering ones."""
    done = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True)
    names = [line.split()[-1].removeprefix("!v/") for line in done.stdout.splitlines()[1:]]
    return [name for name in names if "whisper" not in name.lower()]


def espeak(text: str, rng: random.Random) -> tuple[str, Waveform]:
    """Speak with a random accent and variant of espeak-ng's formant synthesis."""
    variant, accent = rng.choice(espeak_variants()), rng.choice(ACCENTS)
    speed, pitch = rng.randint(110, 210), rng.randint(15, 85)
    command = ["espeak-ng", "-v", f"{accent}+{variant}", "-s", str(speed), "-p", str(pitch), "--stdout", text]
    return f"espeak-{accent}-{variant}", decode(run(command))


def flite(text: str, rng: random.Random) -> tuple[str, Waveform]:
    """Speak with a random voice of flite at a random tempo and pitch."""
    voice = rng.choice(FLITE_VOICES)
    settings = {
        "duration_stretch": round(rng.uniform(0.75, 1.4), 2),
        "int_f0_target_mean": rng.randint(80, 240),
        "int_f0_target_stddev": rng.randint(8, 30),
    }
    command = ["flite", "-voice", voice, *(x for k, v in settings.items() for x in ("--setf", f"{k}={v}"))]
    return f"flite-{voice}", decode(run([*command, "-t", text, "-o", "/dev/stdout"]))


@dataclass(frozen=True)
class Engine:
    """A synthesiser."""

    say: Say
    share: float
    """Probability of being drawn, relative to the other engines."""
    installed_by: str
    """Command that installs it."""


ENGINES = {
    "espeak": Engine(espeak, 4, "apt-get install espeak-ng"),
    "flite": Engine(flite, 2, "apt-get install flite"),
}


def run(command: Sequence[str]) -> bytes:
    """Run a program and return its stdout."""
    return subprocess.run(command, check=True, capture_output=True).stdout


def decode(wav: bytes) -> Waveform:
    """A synthesiser's WAV, whose header may lack the length -> waveform at 16 kHz, trimmed to the speech."""
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    return trimmed(samples[:, 0].astype(np.float32), rate)


def trimmed(samples: Waveform, sample_rate_hz: int) -> Waveform:
    """Resample to 16 kHz and keep the speech with `BEFORE_S` before and `AFTER_S` after it."""
    waveform = soxr.resample(samples, sample_rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
    start, end = extent(waveform)
    return waveform[max(0, start - round(BEFORE_S * SAMPLE_RATE_HZ)) : end + round(AFTER_S * SAMPLE_RATE_HZ)]


def installed(names: Sequence[str]) -> list[Engine]:
    """The named engines that work on this machine; prints a line to stderr for each one that does not.

    Raises:
        DataError: none works.
    """
    found = []
    for name in names:
        engine = ENGINES[name]
        try:
            _, waveform = engine.say("one", random.Random(0))
        except (OSError, subprocess.CalledProcessError):
            waveform = np.zeros(0, np.float32)
        if len(waveform):
            found.append(engine)
        else:
            print(f"{name} is left out, it is not installed: {engine.installed_by}", file=sys.stderr)
    if not found:
        raise DataError("no synthesiser is installed: espeak-ng alone will do")
    return found


def synthesise(engines: Sequence[Engine], text: str, seed: str) -> tuple[str, Waveform]:
    """Synthesise a text, determined by the arguments: name of the voice, waveform with a peak of `PEAK`."""
    rng = random.Random(seed)
    (engine,) = rng.choices(engines, [engine.share for engine in engines])
    voice, waveform = engine.say(text, rng)
    return voice, PEAK / (np.abs(waveform).max(initial=0) + 1e-6) * waveform


def word(target: Path, engines: Sequence[Engine], text: str, number: int) -> None:
    """Write one clip of a word."""
    voice, waveform = synthesise(engines, text, f"{text} {number}")
    if SHORTEST_S <= len(waveform) / SAMPLE_RATE_HZ <= LONGEST_S:
        write(target / "synthetic" / text / f"{voice}_nohash_{number}.wav", waveform)


def sentence(target: Path, engines: Sequence[Engine], number: int) -> None:
    """Write one utterance of six to twelve random words."""
    rng = random.Random(f"text {number}")
    words = rng.sample(RUNNING, rng.randint(6, 12))
    if rng.random() < 0.4:
        words.insert(rng.randrange(1, len(words)), ",")  # a pause
    voice, waveform = synthesise(engines, " ".join(words), f"sentence {number}")
    if len(waveform) > LONGEST_S * SAMPLE_RATE_HZ:
        write(target / "synthetic_sentences" / f"{voice}_{number}.wav", waveform)


def write(path: Path, waveform: Waveform) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, SAMPLE_RATE_HZ, subtype="PCM_16")


def synthesise_all(target: Path, engines: Sequence[Engine], counts: Mapping[str, int], n_sentences: int) -> None:
    """Write `counts[word]` clips of each word and `n_sentences` sentences, using all cores."""
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(word, target, engines, text, n) for text, count in counts.items() for n in range(count)]
        jobs += [pool.submit(sentence, target, engines, n) for n in range(n_sentences)]
        for job in tqdm(jobs, desc="recordings", unit="", disable=None):  # silent if stderr is not a terminal
            job.result()


def read_words(path: Path) -> list[str]:
    """Read the words of a text file, one per line; lines that begin with # are comments.

    Raises:
        ConfigError: it can't be read, or a line is not a single word.
    """
    words = [word for line in read_text(path).splitlines() if (word := line.split("#")[0].strip().lower())]
    for text in words:
        if not re.fullmatch(r"[a-z]+('[a-z]+)?", text):
            raise ConfigError(f"{path} must hold one English word per line, got {text!r}")
    return words


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.material.voices", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, metavar="DIR", help="the data folder, --data.root of the training recipe")
    parser.add_argument("--scarce", type=int, default=600, help="clips of on and of off (default 600)")
    parser.add_argument("--known", type=int, default=80, help="clips of each other word of the vocabulary (default 80)")
    parser.add_argument("--outside", type=int, default=25, help="clips of each word outside it (default 25)")
    parser.add_argument("--commands", type=Path, default=WORDS, metavar="FILE", help="list of the commands")
    parser.add_argument("--words", type=Path, metavar="FILE", help="more words outside the vocabulary, one per line")
    parser.add_argument("--sentences", type=int, default=1500, help="utterances of running speech (default 1500)")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="engines to use (default: all)"
    )
    arguments = parser.parse_args(argv)
    for name in ("scarce", "known", "outside", "sentences"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name} must not be negative")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def make() -> None:
        more = read_words(arguments.words) if arguments.words else []
        counts = dict.fromkeys([*OUTSIDE, *more], arguments.outside)
        counts |= dict.fromkeys((*read_commands(arguments.commands), *OTHERS), arguments.known)
        counts |= dict.fromkeys(SCARCE, arguments.scarce)
        synthesise_all(arguments.root, installed(arguments.engines), counts, arguments.sentences)

    return exit_status(make)


if __name__ == "__main__":
    sys.exit(main())
