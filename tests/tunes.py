"""Words without a voice: tunes of three tones, and an embedding that tells them apart."""

import numpy as np

from speech.own.similarity import Similarity, make_similarity

RATE = 16000
BANDS = 12


def tune(pitches_hz: tuple[float, ...], rng: np.random.Generator, seconds: float = 0.5) -> np.ndarray:
    """The tones one after another, a little different each time, with a pause before and after."""
    parts = []
    for pitch_hz in pitches_hz:
        time = np.arange(round(seconds / len(pitches_hz) * rng.uniform(0.95, 1.05) * RATE)) / RATE
        parts.append(rng.uniform(0.2, 0.4) * np.sin(2 * np.pi * pitch_hz * rng.uniform(0.99, 1.01) * time))
    sound = np.concatenate(parts)
    noise = 0.003 * rng.standard_normal(len(sound) + 8000)
    noise[4000 : 4000 + len(sound)] += sound
    return noise.astype(np.float32)


def embed(waveform: np.ndarray) -> np.ndarray:
    """Log energies of bands in the three thirds of the sound: (3 * BANDS,)"""
    loud = np.flatnonzero(np.abs(waveform) > 0.3 * np.abs(waveform).max(initial=1e-6))
    sound = waveform[loud[0] : loud[-1] + 1] if len(loud) > 100 else waveform
    energies = []
    for third in np.array_split(sound, 3):
        power = np.square(np.abs(np.fft.rfft(third, 1024)))[: 27 * BANDS]
        energies.append(np.log(power.reshape(BANDS, -1).mean(1) + 1e-3))
    return np.concatenate(energies).astype(np.float32)


def random_pitches(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(x) for x in rng.uniform(300, 4000, 3))


def make_space(rng: np.random.Generator) -> Similarity:
    """Twenty tunes with names, and a background of others."""
    names = [f"tune {n}" for n in range(20)]
    known = {name: random_pitches(rng) for name in names}
    words = [name for name in names for _ in range(10)]
    vectors = np.stack([embed(tune(known[word], rng)) for word in words])
    background = np.stack([embed(tune(random_pitches(rng), rng)) for _ in range(400)])
    speakers = [str(n % 9) for n in range(len(words) // 2)] + ["one"] * (len(words) - len(words) // 2)
    return make_similarity(vectors, words, speakers, background, hours=1.0, alone=0.25)


class LoudIsSpeech:
    """Stands in for the voice activity detector: every loud hop is speech."""

    def reset(self) -> None:
        pass

    def push(self, hop: np.ndarray) -> float:
        return float(np.abs(hop).max() > 0.02)
