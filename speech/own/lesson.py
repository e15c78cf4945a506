"""Recordings of a word: cut from a stream, checked for faults, and compared with one another."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from speech.own.matching import WordModel
from speech.own.similarity import Similarity, Vectors
from speech.segment import HOP, SAMPLE_RATE_HZ, ListenerConfig, Segmenter, SpeechDetector, Utterance
from speech.sound.files import Block

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
UNLIKE = -1.5
"""Log-odds of a recording under the model of another one, below which they are not the same word."""
MEMORY_S = 12.0
"""Audio kept in memory: enough for the longest utterance with its margins."""


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


def level_dbfs(waveform: Block) -> float:
    """RMS level of (time,) in dB relative to full scale."""
    return float(10 * np.log10(np.square(waveform, dtype=np.float64).mean() + 1e-12)) if len(waveform) else -120.0


def fault_of(utterance: Utterance, raw: Block) -> Fault | None:
    """The first fault found in an utterance, or None.

    Args:
        utterance: as the endpointer cut it.
        raw: (time,) the same samples of the stream before the high-pass; empty for an utterance that is too long.
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
    if _is_cut_off(raw, begin, end, speech):
        return Fault.CUT_OFF
    margins = np.concatenate([utterance.waveform[: max(0, begin - HOP)], utterance.waveform[end + 2 * HOP :]])
    return Fault.NOISY if len(margins) and level_dbfs(margins) > speech - LEAST_SNR_DB else None


def _is_cut_off(raw: Block, begin: int, end: int, speech_dbfs: float) -> bool:
    """Whether the sound begins or ends abruptly next to the speech, which lies at samples begin..end of `raw`."""
    edge, near = round(EDGE_S * SAMPLE_RATE_HZ), 2 * HOP
    sound = np.flatnonzero(raw)  # files are padded with digital silence
    first, last = (int(sound[0]), int(sound[-1]) + 1) if len(sound) else (0, 0)
    ends = [raw[first : first + edge]] * (first > begin - near) + [raw[last - edge : last]] * (last < end + near)
    return any(level_dbfs(some) > speech_dbfs + EDGE_DB for some in ends)


def takes(
    blocks: Iterable[Block], config: ListenerConfig, voice: SpeechDetector | None = None
) -> Generator[Take | None]:
    """Yield each utterance of a stream at `SAMPLE_RATE_HZ` as soon as it has ended, and None after each block."""
    segmenter = Segmenter(config, config.max_word_s, voice)
    raw, begin, now = np.zeros(0, np.float32), 0, 0  # the audio kept, where it begins, where the next hop begins
    for block in blocks:
        raw = np.concatenate([raw, block])
        while now + HOP <= begin + len(raw):
            utterance = segmenter.push(raw[now - begin : now - begin + HOP])
            now += HOP
            if utterance:
                yield _take(utterance, raw, begin)
        dropped = max(0, len(raw) - round(MEMORY_S * SAMPLE_RATE_HZ))
        raw, begin = raw[dropped:], begin + dropped
        yield None
    rest = raw[now - begin :]
    last = segmenter.push(np.pad(rest, (0, HOP - len(rest)))) or segmenter.finish()
    if last:
        yield _take(last, raw, begin)


def _take(utterance: Utterance, raw: Block, begin: int) -> Take:
    cut = raw[max(0, utterance.begin - begin) : utterance.closed - begin] if len(utterance.waveform) else raw[:0]
    return Take(utterance.waveform, fault_of(utterance, cut))


def largest_group(similarity: Similarity, vectors: Sequence[Vectors]) -> list[int]:
    """The largest group of recordings that are all like one of them.

    Args:
        vectors: (axes,) unit vector of each recording, in order of time.
    Returns:
        indices of the group; the first of several groups of equal size.
    """
    groups = []
    for vector in vectors:
        odds = WordModel(vector).log_odds(similarity, np.stack(list(vectors)))
        groups.append(np.flatnonzero(odds >= UNLIKE).tolist())
    return max(groups, key=len, default=[])
