"""Scenes: streams made from a part's recordings, with commands at known places.

The streams are always the same: clips, gaps, rooms, sentences, tones, noise and speech are drawn with fixed seeds and
shared by all scenes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.data.recordings import Recording, index_others, index_words, read_recording
from recipes.data.sounds import SPEECH_DB, Waveform, extent, reverberate, room_response, set_level
from speech.errors import DataError
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, utterances_of

HELD_OUT = 0.12
"""Share of the training speakers of `on` and `off` that belong to validation, as in training."""
KEPT = 64
"""Recordings that are kept in memory."""
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
BED_S = 5
"""Length of the pieces of noise or speech that are mixed in."""
QUIET_DBFS = -78.0
"""RMS of the noise in a quiet room."""
ECHO_DELAY = SAMPLE_RATE_HZ * 8 // 100
"""Samples from what a loudspeaker is given to the echo at the microphone."""


class Recordings:
    """Recordings on disk: `recordings[i]` is recording i, (time,) float32 in -1..1.

    They are sorted by path, so that the same seed draws the same recordings.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings = sorted(recordings, key=lambda recording: recording.path)
        self._read = lru_cache(KEPT)(read_recording)

    @classmethod
    def load(cls, root: Path, part: str | None = None) -> "Recordings":
        """The recordings of a part and all rooms; None: of all parts.  Raises DataError if the data is missing."""
        found = index_words(root, HELD_OUT) + index_others(root)
        return cls([r for r in found if part in (None, r.part) or r.source == "rooms"])

    def __getitem__(self, index: int) -> Waveform:
        return self._read(self.recordings[index])

    def select(self, part: str, source: str, word: str | None = None) -> NDArray[np.int64]:
        """Indices of the recordings of one part and source, and of one word if given."""
        numbered = enumerate(self.recordings)
        return np.array(
            [i for i, r in numbered if (r.part, r.source) == (part, source) and word in (None, r.word)], int
        )

    def crop(self, index: int, rng: np.random.Generator, length: int) -> Waveform:
        """Cut `length` samples at a random position of recording `index`; a shorter recording is repeated."""
        waveform = self[index]
        if len(waveform) < length:
            waveform = np.tile(waveform, -(-length // len(waveform)))
        start = int(rng.integers(len(waveform) - length + 1))
        return waveform[start : start + length]


@dataclass(frozen=True)
class Placed:
    """A word and its place in a stream."""

    word: str
    start_s: float
    end_s: float


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
    peak_dbfs: float | None = None
    """Peak of each clip, over a quiet room with noise at `QUIET_DBFS`; None: the usual level, without this noise."""

    echo_db: float | None = None
    """Level of the clip relative to the echo of speech that the machine plays in the same room; None: it is silent."""
    cancelled: bool = False
    """Whether the echo is cancelled, given what was played."""

    @property
    def name(self) -> str:
        noise = "" if self.snr_db is None else f"{self.snr_db:.0f} dB"
        parts = (
            noise + " over speech" * (self.bed == "speech"),
            "room" * (self.room and self.echo_db is None),
            "" if self.after_talk_s is None else f"{self.after_talk_s:g} s after talk",
            "after a tone" * self.after_tone,
            "home" * self.home,
            "" if self.peak_dbfs is None else f"peak {self.peak_dbfs:.0f} dBFS",
            "" if self.echo_db is None else f"{self.echo_db:.0f} dB over echo",
            "cancelled" * self.cancelled,
        )
        return ", ".join(filter(None, parts)) or "clean"


RATIOS_DB = (None, 20.0, 10.0, 5.0, 0.0)
SCENES = (
    *map(Scene, RATIOS_DB),
    *(Scene(ratio_db, room=True) for ratio_db in RATIOS_DB),
    *(Scene(ratio_db, bed="speech") for ratio_db in (20.0, 10.0)),
    *(Scene(after_talk_s=pause_s) for pause_s in (0.3, 0.6, 1.0, 2.0)),
    Scene(after_tone=True),
    Scene(home=True),
    *(Scene(peak_dbfs=peak_dbfs) for peak_dbfs in (-15.0, -25.0, -35.0, -40.0, -45.0)),
    *(
        Scene(room=True, echo_db=db, cancelled=cancelled)
        for db in (10.0, 5.0, 0.0, -5.0)
        for cancelled in (False, True)
    ),
)


@dataclass(frozen=True)
class Dressed:
    """One command with the sounds of its scene."""

    waveform: Waveform
    """(time,); may be longer than the clip, as in a room."""
    lead: int = 0
    """Samples before the clip."""


Dress = Callable[[Waveform], Dressed]
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
        dressed = dress(clip)
        at = begin + dressed.lead
        placed.append(Placed(word, (at + start) / SAMPLE_RATE_HZ, (at + end) / SAMPLE_RATE_HZ))
        pieces.append((begin, dressed.waveform))
        at += len(clip)
    stream = np.zeros(at + TAIL, np.float32)
    for begin, piece in pieces:
        stream[begin : begin + len(piece)] += piece
    return stream, placed


class InRoom:
    """Puts each clip into a random room, with `TAIL` samples of reverberation after it.

    Args:
        responses: impulse responses, (taps,) each.
    """

    def __init__(self, responses: Sequence[Waveform]) -> None:
        self._responses, self._rng = responses, np.random.default_rng(2)

    def __call__(self, clip: Waveform) -> Dressed:
        return Dressed(
            reverberate(np.pad(clip, (0, TAIL)), self._responses[int(self._rng.integers(len(self._responses)))])
        )


class AfterTalk:
    """Puts a sentence and a pause before each clip; the word is as loud as the sentence.

    Args:
        sentences: scaled to `SPEECH_DB`; used in turn.
        pause_s: from the sentence's end to the clip.
    """

    def __init__(self, sentences: Sequence[Waveform], pause_s: float) -> None:
        self._sentences, self._pause, self._n = sentences, np.zeros(int(pause_s * SAMPLE_RATE_HZ), np.float32), 0

    def __call__(self, clip: Waveform) -> Dressed:
        before = np.concatenate([self._sentences[self._n % len(self._sentences)], self._pause])
        self._n += 1
        return Dressed(np.concatenate([before, clip * (10 ** (SPEECH_DB / 20) / sound_rms(clip))]), len(before))


class AfterTone:
    """Puts a tone before each clip, as loud as its word."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)

    def __call__(self, clip: Waveform) -> Dressed:
        pitch_hz, gap_s = self._rng.uniform(*TONE_HZ), self._rng.uniform(*TONE_GAP_S)
        sound = tone(pitch_hz, sound_rms(clip))
        begin = extent(clip)[0] - round(gap_s * SAMPLE_RATE_HZ) - len(sound)
        lead = max(0, -begin)
        waveform = np.pad(clip, (lead, 0))
        waveform[begin + lead : begin + lead + len(sound)] += sound
        return Dressed(waveform, lead)


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

    def __init__(self, recordings: Recordings, part: str, commands: Sequence[str], n_words: int) -> None:
        self._recordings, self._part, self._n_words = recordings, part, n_words
        self._of_word = {word: recordings.select(part, "words", word) for word in commands}
        if not all(map(len, self._of_word.values())):
            raise DataError(f"the live protocol needs recordings of all commands in the {part} part")

    def compose(self, scene: Scene) -> tuple[Waveform, list[Placed]] | None:
        """The stream (time,) of a scene and its commands; None if there are no recordings for it."""
        dress = self._dress(scene)
        clips = self._at_home if scene.home else self._clips
        if dress is None or not clips:
            return None
        stream, placed = place(clips, dress)
        if scene.peak_dbfs is not None:
            hiss = np.random.default_rng(6).standard_normal(len(stream), np.float32)
            stream += hiss * np.float32(10 ** (QUIET_DBFS / 20))
        if scene.snr_db is not None:
            mixed = bed(self._recordings, self._part, scene.bed, len(stream), np.random.default_rng(1))
            if not mixed.any():
                return None
            stream += mixed * np.float32(10 ** (-scene.snr_db / 20))
        if scene.echo_db is not None:
            played = bed(self._recordings, self._part, "speech", len(stream), np.random.default_rng(7))
            if not played.any():
                return None
            echo = np.pad(reverberate(played, self._rooms[0]), (ECHO_DELAY, 0))[: len(stream)]
            stream += echo * np.float32(10 ** (-scene.echo_db / 20))
            stream = without_echo(stream, played) if scene.cancelled else stream
        return np.clip(stream, -1, 1), placed

    def _dress(self, scene: Scene) -> Dress | None:
        if scene.room:
            responses = self._rooms if scene.echo_db is None else self._rooms[1:]  # the loudspeaker is in the first
            return InRoom(responses) if responses else None
        if scene.after_talk_s is not None:
            return AfterTalk(self._sentences, scene.after_talk_s) if self._sentences else None
        if scene.peak_dbfs is not None:
            peak = 10 ** (scene.peak_dbfs / 20)
            return lambda clip: Dressed(clip * np.float32(peak / (np.abs(clip).max() + 1e-9)))
        return AfterTone() if scene.after_tone else Dressed

    @cached_property
    def _clips(self) -> list[tuple[str, Waveform, float]]:
        """The same number of clips of each command in random order, each with the seconds of silence before it."""
        rng, clips = np.random.default_rng(0), []
        for word in rng.permutation(np.repeat(list(self._of_word), self._n_words // len(self._of_word))):
            clip = self._recordings[int(rng.choice(self._of_word[str(word)]))]
            clips.append((str(word), set_level(clip, SPEECH_DB), float(rng.uniform(*GAP_S))))
        return clips

    @cached_property
    def _at_home(self) -> list[tuple[str, Waveform, float]]:
        """Every command recorded at home, once each."""
        rng, found = np.random.default_rng(4), self._recordings
        chosen = [i for word in self._of_word for i in found.select(self._part, "home", word)]
        return [
            (found.recordings[i].word, set_level(found[i], SPEECH_DB), float(rng.uniform(*GAP_S)))
            for i in rng.permutation(np.array(chosen, int))
        ]

    @cached_property
    def _rooms(self) -> list[Waveform]:
        found = self._recordings
        chosen = found.select(self._part, "rooms")
        return [room_response(found[i]) for i in (chosen if len(chosen) else found.select("training", "rooms"))]

    @cached_property
    def _sentences(self) -> list[Waveform]:
        """As many sentences as there are commands in a stream, or as the part has."""
        found: list[Waveform] = []
        for i in np.random.default_rng(5).permutation(self._recordings.select(self._part, "speech")):
            spoken = sentence(self._recordings[i])
            if spoken is not None and is_talk(spoken):
                found.append(spoken)
            if len(found) == self._n_words:
                break
        return found


def bed(recordings: Recordings, part: str, source: str, n_samples: int, rng: np.random.Generator) -> Waveform:
    """Random pieces of noise or speech of the part, `BED_S` each; silence if it has none."""
    sources = recordings.select(part, source)
    if not len(sources):
        return np.zeros(n_samples, np.float32)
    length = BED_S * SAMPLE_RATE_HZ
    pieces = [recordings.crop(int(rng.choice(sources)), rng, length) for _ in range(n_samples // length + 1)]
    return np.concatenate([set_level(piece, SPEECH_DB) for piece in pieces])[:n_samples]


def without_echo(stream: Waveform, played: Waveform) -> Waveform:
    """The stream (time,) of a microphone without the echo of what was played (time,) meanwhile."""
    from speech.sound.echo import EchoCanceller

    canceller, pairs = EchoCanceller(), zip(blocks(stream), blocks(played), strict=True)
    found = np.concatenate([canceller.filter(block, reference=reference) for block, reference in pairs])
    return np.pad(found, (0, len(stream) - len(found)))


def blocks(waveform: Waveform) -> list[Waveform]:
    """Split a recording into blocks of about 100 ms, as from a microphone."""
    return np.array_split(waveform, max(1, len(waveform) // 1600))
