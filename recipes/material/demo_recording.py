"""Make the demo recording, speech/demo.flac, with espeak-ng and flite: `python -m recipes.material.demo_recording`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from recipes.data.sounds import Waveform
from recipes.material.voices import decode
from speech.listen import DEMO
from speech.segment import SAMPLE_RATE_HZ

ESPEAK = {"george": ("en-us+m1", "140", "45"), "oscar": ("en-us+m3", "140", "45"), "anna": ("en-us+f2", "135", "60")}
LINES = (
    ("slt", "yes"),
    ("anna", "no"),
    ("george", "up"),
    ("slt", "down"),
    ("anna", "left"),
    ("rms", "right"),
    ("oscar", "stop"),
    ("kal16", "go"),
    ("rms", "on"),
    ("slt", "off"),
    ("slt", "Thank you for coming over on such a rainy evening."),
)
"""Voice and text of each line; the sentence must be ignored by the recogniser."""
COMMANDS = tuple(text for _, text in LINES if " " not in text)
PAUSE_S = 0.7
LEVEL = 0.3


def speak(voice: str, text: str) -> Waveform:
    """Synthesise one line of the script at 16 kHz with a peak of `LEVEL`."""
    if voice in ESPEAK:
        variant, speed, pitch = ESPEAK[voice]
        command = ["espeak-ng", "-v", variant, "-s", speed, "-p", pitch, "--stdout", text]
    else:
        command = ["flite", "-voice", voice, "-t", text, "-o", "/dev/stdout"]
    waveform = decode(subprocess.run(command, check=True, capture_output=True).stdout)
    return LEVEL * waveform / np.abs(waveform).max()


def compose(rng: np.random.Generator) -> Waveform:
    """Synthesise the whole script with pauses and add a faint hiss."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE_HZ), np.float32)
    pieces = [pause]
    for voice, text in LINES:
        pieces += [speak(voice, text), pause]
    recording = np.concatenate(pieces)
    return recording + 1e-3 * rng.standard_normal(len(recording)).astype(np.float32)


def main(target: Path = DEMO) -> int:
    try:
        recording = compose(np.random.default_rng(0))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: espeak-ng and flite are needed: {error}", file=sys.stderr)
        return 1
    soundfile.write(target, recording, SAMPLE_RATE_HZ, subtype="PCM_16")
    print(f"{target}: {len(recording) / SAMPLE_RATE_HZ:.1f} s, {', '.join(COMMANDS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
