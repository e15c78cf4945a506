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
from threading import Lock

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from recipes.material.sounds import Waveform, extent
from recipes.vocabulary import WORDS, read_commands
from speech.errors import DataError, exit_status
from speech.segment import SAMPLE_RATE_HZ

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
"""The other words of Speech Commands, words that sound similar to a command (no homophones), and everyday words."""
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
"""Words of the running speech: everyday words, and some that contain the sound of a command."""
ACCENTS = (*["en-us"] * 3, "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")

BEFORE_S, AFTER_S = 0.05, 0.1
"""Audio kept before and after the speech."""
SHORTEST_S, LONGEST_S = 0.1, 1.5
"""Range of the length of a word; shorter clips (synthesis failed) and longer ones (too slow) are not written."""
PEAK = 0.5
"""Peak of a recording, relative to full scale."""
PICO_RATE_HZ = 16000

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


def festival(text: str, rng: random.Random) -> tuple[str, Waveform]:
    """Speak with Festival's diphone voice from Debian's festvox-kdlpc16k at a random tempo and pitch."""
    stretch, pitch, spread = round(rng.uniform(0.75, 1.4), 2), rng.randint(80, 200), rng.randint(8, 30)
    scheme = (
        f"(begin (voice_ked_diphone) (Parameter.set 'Duration_Stretch {stretch}) (set! int_lr_params "
        f"'((target_f0_mean {pitch}) (target_f0_std {spread}) (model_f0_mean 170) (model_f0_std 34))))"
    )
    command = ["text2wave", "-F", str(SAMPLE_RATE_HZ), "-otype", "raw", "-eval", scheme, "-"]  # its WAV header says 0
    return "festival-ked", trimmed(from_int16(run(command, text.encode())), SAMPLE_RATE_HZ)


_pico = Lock()
"""Pico keeps its state in global variables."""


def pico(text: str, rng: random.Random) -> tuple[str, Waveform]:
    """Speak with a random English voice of SVOX Pico at a random tempo and pitch."""
    from py_nanotts import NanoTTS

    voice = rng.choice(("en-GB", "en-US"))
    speed, pitch = rng.uniform(0.7, 1.4), rng.uniform(0.75, 1.35)
    with _pico:
        samples = NanoTTS().speak(text, voice=voice, speed=speed, pitch=pitch)
    return f"pico-{voice}", trimmed(from_int16(samples), PICO_RATE_HZ)


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
    "pico": Engine(pico, 2, "pip install py-nanotts"),
    "festival": Engine(festival, 1, "apt-get install festival festvox-kdlpc16k"),
}


def run(command: Sequence[str], text: bytes = b"") -> bytes:
    """Run a program and return its stdout."""
    return subprocess.run(command, input=text, check=True, capture_output=True).stdout


def from_int16(samples: bytes) -> Waveform:
    """Raw 16-bit samples in this machine's byte order -> float32 in -1..1."""
    return np.frombuffer(samples, np.int16).astype(np.float32) / np.float32(32768)


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
        except (OSError, ImportError, subprocess.CalledProcessError):
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
    words = rng.sample(RUNNING.split(), rng.randint(6, 12))
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
        DataError: it cannot be read, or a line is not a single word.
    """
    try:
        lines = [line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    words = [line for line in lines if line and not line.startswith("#")]
    for text in words:
        if not re.fullmatch(r"[a-z]+('[a-z]+)?", text):
            raise DataError(f"{path} must hold one English word per line, got {text!r}")
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
        counts = dict.fromkeys([*OUTSIDE.split(), *more], arguments.outside)
        counts |= dict.fromkeys((*read_commands(arguments.commands), *OTHERS), arguments.known)
        counts |= dict.fromkeys(SCARCE, arguments.scarce)
        synthesise_all(arguments.root, installed(arguments.engines), counts, arguments.sentences)

    return exit_status(make)


if __name__ == "__main__":
    sys.exit(main())
