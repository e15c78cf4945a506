"""A listener whose ears are scripted: the activity follows the amplitude of a tone, the posteriors come from a list."""

from collections.abc import Iterable, Mapping

import numpy as np

from speech.bundle import BundleInfo
from speech.recognizer import Recognizer
from speech.segment import HOP, SAMPLE_RATE_HZ

PITCH_HZ = 1000  # a hop holds 32 whole periods


class LoudVoice:
    """In the place of Silero VAD, which takes no tone for speech: the probability is twice a tone's amplitude."""

    def __init__(self) -> None:
        self.n_pushed, self.n_resets = 0, 0

    def reset(self) -> None:
        self.n_resets += 1

    def push(self, hop: np.ndarray) -> float:
        self.n_pushed += 1
        return min(1.0, 2 * float(np.sqrt(2 * np.mean(np.square(hop)))))


def sound(*pieces: tuple[float, float]) -> np.ndarray:
    """Tones, one after another, that `LoudVoice` takes for speech: (seconds, to whole hops; probability)."""
    amplitudes = np.concatenate([np.full(round(seconds * SAMPLE_RATE_HZ / HOP), p / 2) for seconds, p in pieces])
    time = np.arange(HOP * len(amplitudes)) / SAMPLE_RATE_HZ
    return (np.repeat(amplitudes, HOP) * np.sin(2 * np.pi * PITCH_HZ * time)).astype(np.float32)


class ScriptedRecognizer(Recognizer):
    """Answers from a list, whatever it hears.

    Args:
        info: of the bundle that it plays.
        script: for each utterance the posterior of one label, of which the last label gets the rest; or, for a CTC
            head, a letter for each step: that of the likeliest label, "." for blank, "?" for as much of two words.
    """

    def __init__(self, info: BundleInfo, script: Iterable[tuple[str, float] | str]) -> None:
        self.info, self._script = info, iter(script)
        self.heard: list[np.ndarray] = []

    def look_again(self) -> None:
        """Nothing is taught."""

    def posteriors(self, waveform: np.ndarray) -> Mapping[str, float]:
        self.heard.append(waveform)
        label, posterior = next(self._script)
        others = [other for other in self.info.labels if other != label]
        return dict.fromkeys(others, (1 - posterior) / len(others)) | {label: posterior}

    def steps(self, waveform: np.ndarray) -> np.ndarray:
        self.heard.append(waveform)
        labels = [label.strip("_") for label in self.info.labels]
        columns = {label[0]: [n] for n, label in enumerate(labels)} | {".": [labels.index("blank")], "?": [0, 1]}
        scores = [
            np.isin(np.arange(len(labels)), columns[letter]) / len(columns[letter]) for letter in next(self._script)
        ]
        return (0.96 * np.array(scores) + 0.01).astype(np.float32)
