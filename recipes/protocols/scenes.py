"""What commands are heard in: streams of a part's recordings, with commands at known places.

The same for a seed: clips, gaps, rooms, sentences, tones, noise and speech are drawn once and used in every scene.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from speech.activity import ListenerConfig, utterances_of
from speech.errors import DataError
from speech.training.augment import impulse_responses, reverberate
from speech.training.clips import SAMPLE_RATE_HZ, Waveform, extent, set_level
from speech.training.corpus import Corpus
from speech.training.mixtures import SPEECH_DB, Placed

TAIL = SAMPLE_RATE_HZ // 2
"""Samples for which a room sounds on after a clip; the shortest gap."""
GAP_S = (0.5, 2.0)
"""Seconds of nothing before each command and what belongs to it."""
SENTENCE_S = (2.0, 5.0)
"""How long somebody talks before a command."""
TONE_S = 0.3
TONE_HZ = (400.0, 2000.0)
TONE_GAP_S = (0.1, 0.5)
"""From the end of a tone to the beginning of the word's sound."""


@dataclass(frozen=True)
class Scene:
    """What commands are heard in."""

    snr_db: float | None = None
    """Level of the clip over what is mixed in; None: nothing is."""
    room: bool = False
    """Whether each command is heard in a room of the part; of training, where it has none."""
    bed: str = "noise"
    """What is mixed in: noise, or speech without commands."""
    after_talk_s: float | None = None
    """From the end of a sentence to the clip, whose word sounds some tenths of a second later; None: no sentence."""
    after_tone: bool = False
    """Whether a tone sounds before each command."""
    home: bool = False
    """Whether the commands are those recorded at home."""

    @property
    def name(self) -> str:
        noise = "" if self.snr_db is None else f"{self.snr_db:.0f} dB"
        talk = "" if self.after_talk_s is None else f"{self.after_talk_s:g} s after talk"
        parts = (
            noise + " over speech" * (self.bed == "speech"),
            "room" * self.room,
            talk,
            "after a tone" * self.after_tone,
            "home" * self.home,
        )
        return ", ".join(filter(None, parts)) or "clean"


LEVELS_DB = (None, 20.0, 10.0, 5.0, 0.0)
SCENES = (
    *map(Scene, LEVELS_DB),
    *(Scene(level_db, room=True) for level_db in LEVELS_DB),
    *(Scene(level_db, bed="speech") for level_db in (20.0, 10.0)),
    *(Scene(after_talk_s=pause_s) for pause_s in (0.3, 0.6, 1.0, 2.0)),
    Scene(after_tone=True),
    Scene(home=True),
)


@dataclass(frozen=True)
class Take:
    """One command and what belongs to it."""

    waveform: Waveform
    """(time,); may sound on after the clip."""
    lead: int
    """Samples before the clip."""


Dress = Callable[[Waveform], Take]
"""A clip (time,) -> what is heard."""


def place(clips: Sequence[tuple[str, Waveform, float]], dress: Dress) -> tuple[Waveform, list[Placed]]:
    """Clips one after another.

    Args:
        clips: word, waveform (time,) and seconds of nothing before it.
        dress: what is heard of each clip and around it.
    Returns:
        The stream (time,), and where the words sound in it.
    """
    pieces, placed, at = [], [], 0
    for word, clip, gap_s in clips:
        begin = at + int(gap_s * SAMPLE_RATE_HZ)
        start, end = extent(clip)
        take = dress(clip)
        at = begin + take.lead
        placed.append(Placed(word, (at + start) / SAMPLE_RATE_HZ, (at + end) / SAMPLE_RATE_HZ))
        pieces.append((begin, take.waveform))
        at += len(clip)
    stream = np.zeros(at + TAIL, np.float32)
    for begin, piece in pieces:
        stream[begin : begin + len(piece)] += piece
    return stream, placed


def alone(clip: Waveform) -> Take:
    """The clip and nothing else."""
    return Take(clip, 0)


class InRoom:
    """Each clip in a random room, which sounds on for `TAIL` samples.

    Args:
        rooms: (rooms, taps) impulse responses.
    """

    def __init__(self, rooms: torch.Tensor) -> None:
        self._rooms, self._rng = rooms, np.random.default_rng(2)

    def __call__(self, clip: Waveform) -> Take:
        dry = torch.from_numpy(np.pad(clip, (0, TAIL)))
        response = self._rooms[self._rng.integers(len(self._rooms))]
        return Take(reverberate(dry[None], response[None])[0].numpy(), 0)


class AfterTalk:
    """Each clip after a sentence and a pause; the word is as loud as the sentence.

    Args:
        sentences: as `set_level` gives them at `SPEECH_DB`; used one after another, over and over.
        pause_s: between the sentence's end and the clip.
    """

    def __init__(self, sentences: Sequence[Waveform], pause_s: float) -> None:
        self._sentences, self._pause, self._n = sentences, np.zeros(int(pause_s * SAMPLE_RATE_HZ), np.float32), 0

    def __call__(self, clip: Waveform) -> Take:
        before = np.concatenate([self._sentences[self._n % len(self._sentences)], self._pause])
        self._n += 1
        return Take(np.concatenate([before, clip * (10 ** (SPEECH_DB / 20) / sound_rms(clip))]), len(before))


class AfterTone:
    """A tone before each clip, as loud as its word."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def __call__(self, clip: Waveform) -> Take:
        pitch_hz, gap_s = self._rng.uniform(*TONE_HZ), self._rng.uniform(*TONE_GAP_S)
        sound = tone(pitch_hz, sound_rms(clip))
        begin = extent(clip)[0] - round(gap_s * SAMPLE_RATE_HZ) - len(sound)
        lead = max(0, -begin)
        heard = np.pad(clip, (lead, 0))
        heard[begin + lead : begin + lead + len(sound)] += sound
        return Take(heard, lead)


def tone(pitch_hz: float, rms: float) -> Waveform:
    """A sine of `TONE_S` that begins and ends within 10 ms."""
    time_s = np.arange(round(TONE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    fade = np.minimum(1, np.minimum(time_s, time_s[::-1]) / 0.01)
    return (rms * np.sqrt(2) * fade * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


def sound_rms(clip: Waveform) -> float:
    """RMS of a clip's sound, without the quiet around it."""
    start, end = extent(clip)
    return float(np.sqrt(np.square(clip[start:end]).mean())) + 1e-9


def sentence(recording: Waveform) -> Waveform | None:
    """The first `SENTENCE_S` of a recording's sound, cut where it is quietest; None for a shorter one."""
    start, end = extent(recording)
    shortest, longest = (round(s * SAMPLE_RATE_HZ) for s in SENTENCE_S)
    sound = recording[start:end]
    if len(sound) < shortest:
        return None
    if len(sound) > longest:
        step = SAMPLE_RATE_HZ // 20
        levels = np.square(sound[shortest:longest].reshape(-1, step)).mean(1)
        sound = sound[: shortest + int(levels.argmin()) * step]
    return set_level(sound[: extent(sound)[1]], SPEECH_DB)


def is_talk(waveform: Waveform) -> bool:
    """Whether the waveform ends with what voice activity detection takes for one long utterance."""
    config = ListenerConfig()
    found = utterances_of(np.pad(waveform, (TAIL, TAIL)), config, config.max_word_s)
    return bool(found) and found[-1].is_long


class Stage:
    """Composes the streams of one part.

    Args:
        commands: the words.
        n_words: commands in a stream, equally many of each.
    Raises:
        DataError: a command without recordings.
    """

    def __init__(self, corpus: Corpus, part: str, commands: Sequence[str], n_words: int) -> None:
        self._corpus, self._part, self._n_words = corpus, part, n_words
        self._of_word = {word: corpus.select(part, "words", word) for word in commands}
        if not all(map(len, self._of_word.values())):
            raise DataError(f"the live protocol needs recordings of all commands in the {part} part")

    def compose(self, scene: Scene) -> tuple[Waveform, list[Placed]] | None:
        """The stream (time,) of a scene and where its commands sound; None where the data lack what it needs."""
        dress = self._dress(scene)
        clips = self._at_home if scene.home else self._clips
        if dress is None or not clips:
            return None
        stream, placed = place(clips, dress)
        if scene.snr_db is not None:
            mixed = bed(self._corpus, self._part, scene.bed, len(stream), np.random.default_rng(1))
            if not mixed.any():
                return None
            stream += mixed * np.float32(10 ** (-scene.snr_db / 20))
        return np.clip(stream, -1, 1), placed

    def _dress(self, scene: Scene) -> Dress | None:
        if scene.room:
            return InRoom(self._rooms) if len(self._rooms) else None
        if scene.after_talk_s is not None:
            return AfterTalk(self._sentences, scene.after_talk_s) if self._sentences else None
        return AfterTone() if scene.after_tone else alone

    @cached_property
    def _clips(self) -> list[tuple[str, Waveform, float]]:
        rng = np.random.default_rng(0)
        return draw_clips(self._corpus, self._of_word, self._n_words, rng)

    @cached_property
    def _at_home(self) -> list[tuple[str, Waveform, float]]:
        """Every command that was recorded at home, once."""
        rng = np.random.default_rng(4)
        chosen = [i for word in self._of_word for i in self._corpus.select(self._part, "home", word)]
        return [
            (self._corpus.recordings[i].word, set_level(self._corpus[i], SPEECH_DB), float(rng.uniform(*GAP_S)))
            for i in rng.permutation(np.array(chosen, np.int64))
        ]

    @cached_property
    def _rooms(self) -> torch.Tensor:
        """(rooms, taps)"""
        recordings = self._corpus.select(self._part, "rooms")
        if not len(recordings):
            recordings = self._corpus.select("training", "rooms")
        return impulse_responses([torch.from_numpy(self._corpus[i]) for i in recordings])

    @cached_property
    def _sentences(self) -> list[Waveform]:
        """As many as there are commands, or as the part has."""
        found: list[Waveform] = []
        rng = np.random.default_rng(5)
        for i in rng.permutation(self._corpus.select(self._part, "speech")):
            spoken = sentence(self._corpus[i])
            if spoken is not None and is_talk(spoken):
                found.append(spoken)
            if len(found) == self._n_words:
                break
        return found


def draw_clips(
    corpus: Corpus, of_word: dict[str, np.ndarray], n_words: int, rng: np.random.Generator
) -> list[tuple[str, Waveform, float]]:
    """Equally many clips of each command in random order, each with the seconds of nothing before it."""
    clips = []
    for word in rng.permutation(np.repeat(list(of_word), n_words // len(of_word))):
        clip = corpus[int(rng.choice(of_word[str(word)]))]
        gap_s = float(rng.uniform(*GAP_S))
        clips.append((str(word), set_level(clip, SPEECH_DB), gap_s))
    return clips


def place_words(
    corpus: Corpus, part: str, commands: Sequence[str], n_words: int, rng: np.random.Generator
) -> tuple[Waveform, list[Placed]]:
    """Equally many clips of each command one after another, 0.5 to 2 s of nothing between them."""
    of_word = {word: corpus.select(part, "words", word) for word in commands}
    return place(draw_clips(corpus, of_word, n_words, rng), alone)


def bed(corpus: Corpus, part: str, source: str, n_samples: int, rng: np.random.Generator) -> Waveform:
    """Pieces of five seconds of the part's recordings of noise or speech; silence where it has none."""
    sources = corpus.select(part, source)
    if not len(sources):
        return np.zeros(n_samples, np.float32)
    length = 5 * SAMPLE_RATE_HZ
    pieces = [corpus.crop(int(rng.choice(sources)), rng, length) for _ in range(n_samples // length + 1)]
    return np.concatenate([set_level(piece, SPEECH_DB) for piece in pieces])[:n_samples]


def blocks(waveform: Waveform) -> list[Waveform]:
    """A recording as a microphone hands it out: about 100 ms at a time."""
    return np.array_split(waveform, max(1, len(waveform) // 1600))
