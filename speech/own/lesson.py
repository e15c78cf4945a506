"""A lesson: recordings of a word are cut from a stream, checked for faults, and compared with one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from speech.errors import ConfigError
from speech.own.matching import log_odds
from speech.own.similarity import Similarity, Vectors, left_out
from speech.own.words import MOST_RECORDINGS, OwnWord, OwnWords, check_name
from speech.recognizer import Recognizer
from speech.segment import HOP, SAMPLE_RATE_HZ, ListenerConfig, Segmenter, SpeechDetector, Utterance
from speech.sound.files import Block, level_dbfs

QUIETEST_DBFS = -50.0
"""Speech level below which its weak sounds are lost."""
LEAST_SNR_DB = 10.0
"""Least level of the speech above the background noise."""
CLIPPED = 0.985
"""Magnitude from which a sample counts as clipped."""
MOST_CLIPPED = 0.002
"""Largest harmless share of clipped samples."""
SHORTEST_S = 0.12
"""Shorter speech is not a word."""
EDGE_S = 0.02
"""Length of audio at each end that is checked for a cut-off word."""
EDGE_DB = -6.0
"""Level of an end relative to the speech, above which the word counts as cut off."""
MEMORY_S = 12.0
"""Audio kept in memory: enough for the longest utterance with its margins."""
PAD_S = 0.4
"""Silence set before and after a file, as it may begin and end with the word."""
SAME = 0.999
"""Cosine from which two utterances are the same recording."""


class Fault(StrEnum):
    """What is wrong with a recording, and what to do about it."""

    TOO_LONG = "too long: say one word, then pause"
    TOO_SHORT = "too short: say the whole word"
    CUT_OFF = "cut off: leave a pause before and after the word"
    CLIPPED = "too loud, the microphone clips: move further away, or lower its level"
    TOO_QUIET = "too quiet: move closer to the microphone, or speak louder"
    NOISY = "too noisy: move closer to the microphone, or somewhere quieter"
    UNLIKE = "unlike the others: say it again, the same way"


@dataclass(frozen=True)
class Take:
    """One utterance that may become a recording of a word."""

    waveform: Block
    """(time,) as the endpointer cut it."""
    fault: Fault | None
    """None if it can be used."""


def fault_of(utterance: Utterance, raw: Block, is_file: bool = False) -> Fault | None:
    """The first fault found in an utterance, or None.

    Args:
        utterance: as the endpointer cut it.
        raw: (time,) the same samples of the stream before the high-pass; empty for an utterance that is too long.
        is_file: it was trimmed by whoever made the file; only a microphone can be late.
    """
    if utterance.is_long:
        return Fault.TOO_LONG
    if utterance.end - utterance.start < SHORTEST_S * SAMPLE_RATE_HZ:
        return Fault.TOO_SHORT
    if np.mean(np.abs(raw) >= CLIPPED) > MOST_CLIPPED:
        return Fault.CLIPPED
    begin, end = utterance.start - utterance.begin, utterance.end - utterance.begin
    speech = level_dbfs(utterance.waveform[begin:end])
    if speech < QUIETEST_DBFS:
        return Fault.TOO_QUIET
    edge = round(EDGE_S * SAMPLE_RATE_HZ)
    if not is_file and max(level_dbfs(raw[:edge]), level_dbfs(raw[-edge:])) > speech + EDGE_DB:
        return Fault.CUT_OFF
    margins = np.concatenate([utterance.waveform[: max(0, begin - HOP)], utterance.waveform[end + 2 * HOP :]])
    return Fault.NOISY if len(margins) and level_dbfs(margins) > speech - LEAST_SNR_DB else None


class TakeCutter:
    """Cuts a stream at `SAMPLE_RATE_HZ` into utterances, each checked for faults.

    Args:
        voice: the voice activity detector; default: Silero VAD.
        is_file: see `fault_of`.
    """

    def __init__(self, voice: SpeechDetector | None = None, is_file: bool = False) -> None:
        config = ListenerConfig()
        self._segmenter, self._is_file = Segmenter(config, config.max_word_s, voice), is_file
        self._raw, self._begin, self._now = (
            np.zeros(0, np.float32),
            0,
            0,
        )  # audio kept, its begin, the next hop

    def push(self, block: Block) -> list[Take]:
        """Take the next samples (time,).  Returns the utterances that end in them."""
        self._raw, found = np.concatenate([self._raw, block]), list[Take]()
        while self._now + HOP <= self._begin + len(self._raw):
            utterance = self._segmenter.push(self._raw[self._now - self._begin :][:HOP])
            self._now += HOP
            found += [self._take(utterance)] if utterance else []
        dropped = max(0, len(self._raw) - round(MEMORY_S * SAMPLE_RATE_HZ))
        self._raw, self._begin = self._raw[dropped:], self._begin + dropped
        return found

    def finish(self) -> list[Take]:
        """End the stream.  Returns its last utterance, if any."""
        rest = self._raw[self._now - self._begin :]
        last = self._segmenter.push(np.pad(rest, (0, HOP - len(rest)))) or self._segmenter.finish()
        return [self._take(last)] if last else []

    def _take(self, utterance: Utterance) -> Take:
        begin = max(0, utterance.begin - self._begin)
        raw = self._raw[begin : utterance.closed - self._begin] if len(utterance.waveform) else self._raw[:0]
        return Take(utterance.waveform, fault_of(utterance, raw, self._is_file))


def takes_of_file(waveform: Block) -> list[Take]:
    """The utterances of a recording (time,) at `SAMPLE_RATE_HZ`, which may begin and end with the word."""
    cutter, silence = TakeCutter(is_file=True), round(PAD_S * SAMPLE_RATE_HZ)
    return cutter.push(np.pad(waveform, silence)) + cutter.finish()


class TeachingSession:
    """Gathers the recordings of one word, and notices those of another one.

    Args:
        recognizer: its embeddings decide which recordings are alike.
        name: the word: one of the model's words, or one of your own.
        n_wanted: recordings to gather; 0: as many as come.
        earlier: own words; if the word is among them, its recordings are kept.
    Raises:
        BundleError: the bundle can't learn words.
        ConfigError: an invalid name, or more than `MOST_RECORDINGS` recordings.
        AudioError: an earlier recording can't be read.
    """

    def __init__(self, recognizer: Recognizer, name: str, n_wanted: int, earlier: OwnWords | None = None) -> None:
        self.name, self._recognizer, self._similarity = check_name(name), recognizer, recognizer.similarity
        word = earlier[self.name] if earlier and self.name in earlier else None
        self._waveforms, self.refused = (word.utterances(), word.counterexamples()) if word else ([], [])
        self._vectors = [self._vector(waveform) for waveform in self._waveforms]
        self._n_earlier, self.n_wanted = len(self._waveforms) + len(self.refused), n_wanted + len(self._waveforms)
        if self.n_wanted > MOST_RECORDINGS:
            raise ConfigError(f"{self.n_wanted} recordings of {self.name!r}; it takes 1 to {MOST_RECORDINGS}")
        self._group = list(range(len(self._waveforms)))

    def _vector(self, waveform: Block) -> Vectors:
        return self._similarity.project(self._recognizer.embed(waveform)[None])[0]

    def take(self, take: Take) -> Fault | None:
        """Add a usable utterance of a stream.  Returns why it does not count, or None."""
        return take.fault or self.add(take.waveform)

    def add(self, waveform: Block) -> Fault | None:
        """Add a recording (time,).  Returns whether it is unlike the others."""
        self._waveforms.append(waveform)
        self._vectors.append(self._vector(waveform))
        self._group = largest_group(self._similarity, np.stack(self._vectors))
        return None if len(self._waveforms) - 1 in self._group else Fault.UNLIKE

    def refuse(self, waveform: Block) -> None:
        """Add a counter-example (time,): it sounds like the word and must not be taken for it."""
        self.refused.append(waveform)

    @property
    def recordings(self) -> list[Block]:
        """The recordings that are alike."""
        return [self._waveforms[n] for n in self._group]

    @property
    def count(self) -> str:
        """Recordings so far, and how many are wanted."""
        return f"{len(self._group)} of {self.n_wanted}" if self.n_wanted else f"{len(self._group)}"

    @property
    def is_over(self) -> bool:
        """Whether there are as many recordings as wanted."""
        return len(self._group) >= self.n_wanted > 0

    @property
    def has_news(self) -> bool:
        """Whether there is something to save."""
        return bool(self._group) and len(self._group) + len(self.refused) > self._n_earlier

    @property
    def odd_ones(self) -> str:
        """Which recordings sound like another word, counted from 1; "" if none does."""
        odd = [str(n + 1) for n in range(len(self._vectors)) if n not in self._group]
        place = f"recording {' and '.join(odd)} of {len(self._vectors)}"
        return f"sounds like another word and is left out: {place}; was {self.name!r} said there?" if odd else ""

    def by_doubt(self, waveforms: Sequence[Block]) -> list[Block]:
        """Those that are not recordings of the word yet, the nearest to its threshold first."""
        known = [*self._vectors, *map(self._vector, self.refused)]
        vectors = map(self._vector, waveforms)
        new = [w for w, v in zip(waveforms, vectors, strict=True) if all(float(v @ other) < SAME for other in known)]
        least = self._recognizer.thresholds.get(self.name)
        if least is None:
            return new
        doubts = [abs(log_odds(self._recognizer.posteriors(w).get(self.name, 0.0)) - log_odds(least)) for w in new]
        return [new[n] for n in np.argsort(doubts, kind="stable")]

    def save(self, own: OwnWords) -> OwnWord:
        """Write the word.  Raises ConfigError if that is not possible."""
        return own.add(self.name, self.recordings, self.refused)


def largest_group(similarity: Similarity, vectors: Vectors) -> list[int]:
    """The largest group of recordings that are all like the mean of the others.

    Args:
        vectors: (recordings, axes) unit vectors, in order of time.
    Returns:
        indices of the group; of several groups of equal size, the first.
    """
    group = list(range(len(vectors)))
    while len(group) > 2:
        scores = left_out(similarity, vectors[group])
        worst = int(np.argmin(scores))
        if scores[worst] >= similarity.expected.unlike:
            return group
        del group[worst]
    alike = len(group) < 2 or left_out(similarity, vectors[group]).min() >= similarity.expected.unlike
    return group if alike else group[:1]
