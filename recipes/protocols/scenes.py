"""Scenes: streams made from a part's recordings, with commands at known places.

The streams are always the same: clips, gaps, rooms, sentences, tones, noise and speech are drawn with fixed seeds and
shared by all scenes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from recipes.data.augment import impulse_responses, reverberate
from recipes.data.clips import SAMPLE_RATE_HZ, Waveform, extent, set_level
from recipes.data.corpus import Corpus
from recipes.data.mixtures import SPEECH_DB, Placed
from speech.errors import DataError
from speech.segment import ListenerConfig, utterances_of

TAIL = SAMPLE_RATE_HZ // 2
"""Samples of reverberation after a clip; equal to the shortest gap."""
GAP_S = (0.5, 2.0)
"""Range of the silence before each command and the sentence or tone before it."""
SENTENCE_S = (2.0, 5.0)
"""Range of the length of a sentence before a command."""
TONE_S = 0.3
TONE_HZ = (400.0, 2000.0)
TONE_GAP_S = (0.1, 0.5)
"""Range of the gap between a tone and the word."""


@dataclass(frozen=True)
class Scene:
    """The conditions under which commands are said."""

    snr_db: float | None = None
    """Level of the clip relative to the sound that is mixed in; None: nothing is mixed in."""
    room: bool = False
    """Whether each command is said in a room of the part, or of training if the part has none."""
    bed: str = "noise"
    """Source of the sound that is mixed in: noise, or speech without commands."""
    after_talk_s: float | None = None
    """Time from a sentence to the clip; its word begins some tenths of a second later.  None: no sentence."""
    after_tone: bool = False
    """Whether there is a tone before each command."""
    home: bool = False
    """Whether the commands recorded at home are used."""

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
    """One command with the sounds of its scene."""

    waveform: Waveform
    """(time,); may be longer than the clip, as in a room."""
    lead: int
    """Samples before the clip."""


Dress = Callable[[Waveform], Take]
"""A clip (time,) -> the clip with the sounds of its scene."""


def place(clips: Sequence[tuple[str, Waveform, float]], dress: Dress) -> tuple[Waveform, list[Placed]]:
    """Place clips in sequence.

    Args:
        clips: word, waveform (time,) and seconds of silence before it.
        dress: adds the sounds of the scene to each clip.
    Returns:
        The stream (time,), and the words with their bounds in it.
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
    """Add nothing to a clip."""
    return Take(clip, 0)


class InRoom:
    """Puts each clip into a random room, with `TAIL` samples of reverberation after it.

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
    """Puts a sentence and a pause before each clip; the word is as loud as the sentence.

    Args:
        sentences: scaled to `SPEECH_DB`; used in turn.
        pause_s: from the sentence's end to the clip.
    """

    def __init__(self, sentences: Sequence[Waveform], pause_s: float) -> None:
        self._sentences, self._pause, self._n = sentences, np.zeros(int(pause_s * SAMPLE_RATE_HZ), np.float32), 0

    def __call__(self, clip: Waveform) -> Take:
        before = np.concatenate([self._sentences[self._n % len(self._sentences)], self._pause])
        self._n += 1
        return Take(np.concatenate([before, clip * (10 ** (SPEECH_DB / 20) / sound_rms(clip))]), len(before))


class AfterTone:
    """Puts a tone before each clip, as loud as its word."""

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
    """A sine of `TONE_S` that fades in and out within 10 ms."""
    time_s = np.arange(round(TONE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    fade = np.minimum(1, np.minimum(time_s, time_s[::-1]) / 0.01)
    return (rms * np.sqrt(2) * fade * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


def sound_rms(clip: Waveform) -> float:
    """RMS of a clip's sound, without the quiet around it."""
    start, end = extent(clip)
    return float(np.sqrt(np.square(clip[start:end]).mean())) + 1e-9


def sentence(recording: Waveform) -> Waveform | None:
    """The beginning of a recording's sound, cut at the quietest place within `SENTENCE_S`; None if it is too short."""
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
    """Whether the last utterance that the endpointer finds is too long for a command."""
    config = ListenerConfig()
    found = utterances_of(np.pad(waveform, (TAIL, TAIL)), config, config.max_word_s)
    return bool(found) and found[-1].is_long


class Stage:
    """Composes the streams of one part.

    Args:
        commands: the words.
        n_words: commands in a stream, the same number of each.
    Raises:
        DataError: a command has no recordings.
    """

    def __init__(self, corpus: Corpus, part: str, commands: Sequence[str], n_words: int) -> None:
        self._corpus, self._part, self._n_words = corpus, part, n_words
        self._of_word = {word: corpus.select(part, "words", word) for word in commands}
        if not all(map(len, self._of_word.values())):
            raise DataError(f"the live protocol needs recordings of all commands in the {part} part")

    def compose(self, scene: Scene) -> tuple[Waveform, list[Placed]] | None:
        """The stream (time,) of a scene and its commands; None if the corpus lacks the recordings for it."""
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
        """Every command recorded at home, once each."""
        rng = np.random.default_rng(4)
        chosen = [i for word in self._of_word for i in self._corpus.select(self._part, "home", word)]
        return [
            (self._corpus.recordings[i].word, set_level(self._corpus[i], SPEECH_DB), float(rng.uniform(*GAP_S)))
            for i in rng.permutation(np.array(chosen, np.int64))
        ]

    @cached_property
    def _rooms(self) -> torch.Tensor:
        """Impulse responses (rooms, taps)."""
        recordings = self._corpus.select(self._part, "rooms")
        if not len(recordings):
            recordings = self._corpus.select("training", "rooms")
        return impulse_responses([torch.from_numpy(self._corpus[i]) for i in recordings])

    @cached_property
    def _sentences(self) -> list[Waveform]:
        """As many sentences as there are commands in a stream, or as the part has."""
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
    """Draw the same number of clips of each command in random order, each with the seconds of silence before it."""
    clips = []
    for word in rng.permutation(np.repeat(list(of_word), n_words // len(of_word))):
        clip = corpus[int(rng.choice(of_word[str(word)]))]
        gap_s = float(rng.uniform(*GAP_S))
        clips.append((str(word), set_level(clip, SPEECH_DB), gap_s))
    return clips


def place_words(
    corpus: Corpus, part: str, commands: Sequence[str], n_words: int, rng: np.random.Generator
) -> tuple[Waveform, list[Placed]]:
    """Place the same number of clips of each command in random order, with 0.5 to 2 s of silence between them."""
    of_word = {word: corpus.select(part, "words", word) for word in commands}
    return place(draw_clips(corpus, of_word, n_words, rng), alone)


def bed(corpus: Corpus, part: str, source: str, n_samples: int, rng: np.random.Generator) -> Waveform:
    """Random pieces of noise or speech of the part, five seconds each; silence if it has none."""
    sources = corpus.select(part, source)
    if not len(sources):
        return np.zeros(n_samples, np.float32)
    length = 5 * SAMPLE_RATE_HZ
    pieces = [corpus.crop(int(rng.choice(sources)), rng, length) for _ in range(n_samples // length + 1)]
    return np.concatenate([set_level(piece, SPEECH_DB) for piece in pieces])[:n_samples]


def blocks(waveform: Waveform) -> list[Waveform]:
    """Split a recording into blocks of about 100 ms, as from a microphone."""
    return np.array_split(waveform, max(1, len(waveform) // 1600))
