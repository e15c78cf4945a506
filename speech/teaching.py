"""Recordings of a word: heard as a stream is, checked for what spoils them, and compared with one another."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from speech.activity import HOP, SAMPLE_RATE_HZ, ListenerConfig, Segmenter, SpeechDetector, Utterance
from speech.audio import Block
from speech.similarity import Similarity, Vectors
from speech.word_model import WordModel

QUIETEST_DBFS = -50.0
"""Level of speech under which its weak sounds are lost."""
LEAST_SNR_DB = 10.0
"""How far speech must stand above the room."""
CLIPPED = 0.985
"""Magnitude from which a sample counts as clipped."""
MOST_CLIPPED = 0.002
"""Share of clipped samples that does no harm."""
SHORTEST_S = 0.12
"""Speech shorter than this is no word."""
EDGE_S = 0.02
"""What is looked at on both ends to see whether a recording begins or ends within the word."""
EDGE_DB = -6.0
"""Level of an end, relative to the word, from which it is cut off."""
UNLIKE = -1.5
"""Log-odds of a recording, by the model of one other, under which they are not the same word."""
MEMORY_S = 12.0
"""Audio at hand: the longest utterance with its margins."""


class Fault(StrEnum):
    """What spoils a recording, and what to do."""

    TOO_LONG = "too long: one word, then a pause"
    TOO_SHORT = "too short: say the whole word"
    CUT_OFF = "cut off: leave a pause before and after the word"
    CLIPPED = "too loud, the microphone overloads: further away, or lower its level"
    TOO_QUIET = "too quiet: closer to the microphone, or louder"
    NOISY = "too much noise around it: closer to the microphone, or somewhere quieter"
    UNLIKE = "unlike the others: say it again, the same way"


@dataclass(frozen=True)
class Take:
    """One utterance on its way to becoming a recording of a word."""

    waveform: Block
    """(time,) as the endpointer cut it."""
    fault: Fault | None


def level_dbfs(waveform: Block) -> float:
    """Root mean square of (time,) in dB relative to full scale."""
    return float(10 * np.log10(np.square(waveform, dtype=np.float64).mean() + 1e-12)) if len(waveform) else -120.0


def fault_of(utterance: Utterance, raw: Block) -> Fault | None:
    """What spoils an utterance, if anything does.

    Args:
        utterance: as the endpointer cut it.
        raw: (time,) the same stretch of the stream before the high-pass; empty for one that is too long.
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
    """Whether the sound begins or ends abruptly, next to the speech that lies at begin..end."""
    edge, near = round(EDGE_S * SAMPLE_RATE_HZ), 2 * HOP
    sound = np.flatnonzero(raw)  # digital silence was set around a file
    first, last = (int(sound[0]), int(sound[-1]) + 1) if len(sound) else (0, 0)
    ends = [raw[first : first + edge]] * (first > begin - near) + [raw[last - edge : last]] * (last < end + near)
    return any(level_dbfs(some) > speech_dbfs + EDGE_DB for some in ends)


def takes(
    blocks: Iterable[Block], config: ListenerConfig, voice: SpeechDetector | None = None
) -> Generator[Take | None]:
    """The utterances of a stream at `SAMPLE_RATE_HZ`, each as soon as it has ended; None after each other block."""
    segmenter = Segmenter(config, config.max_word_s, voice)
    raw, begin, now = np.zeros(0, np.float32), 0, 0  # what is at hand, and where it begins; the hop that comes next
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
    """The most recordings that sound like one word: all that are like one of them.

    Args:
        vectors: (axes,) of each, in the order in which they came.
    Returns:
        positions; of groups of one size the earliest.
    """
    groups = []
    for vector in vectors:
        odds = WordModel(vector).log_odds(similarity, np.stack(list(vectors)))
        groups.append(np.flatnonzero(odds >= UNLIKE).tolist())
    return max(groups, key=len, default=[])
