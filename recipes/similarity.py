"""Prepare a bundle for own words: `python -m recipes.similarity --model BUNDLE --data.root DIR`.

Cuts training speech into utterances as the live path does, embeds these and training words, and adds the result,
described in `speech.own.similarity`, to the bundle's metadata.  Nothing else in the bundle changes.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from recipes.data.recordings import Recording, index_others, index_words
from recipes.data.sounds import extent
from speech.bundle import DEFAULT_MODEL
from speech.decide import Decision
from speech.errors import DataError, exit_status
from speech.own.similarity import METADATA, N_TAUGHT, Similarity, make_similarity
from speech.recognizer import Recognizer
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Segmenter, Utterance, counted, high_pass, utterances_in
from speech.sound.files import Block, read

PER_WORD = 24
"""Recordings of each word of the bundle, by different speakers if there are enough."""
PER_OTHER = 10
"""Recordings of each other word."""
N_LESSONS = 100
"""Speakers of whom all recordings of a word are taken, if there are `N_TAUGHT`."""
LEAST = 3
"""Words with fewer recordings are left out."""
MARGINS_S = (0.3, 0.3)
"""Audio kept before and after a single word."""


def choose(root: Path, known: Sequence[str], rng: np.random.Generator) -> list[Recording]:
    """Choose training recordings of every word: by as many speakers as possible, and lessons of single speakers."""
    by_word: dict[str, dict[str, list[Recording]]] = {}
    for recording in [*index_words(root, 0.0), *index_others(root)]:
        if recording.part == "training" and recording.source in ("words", "voices"):
            speaker = recording.speaker
            by_word.setdefault(recording.word, {}).setdefault(speaker, []).append(recording)
    chosen: dict[Recording, None] = {}
    for word, by_speaker in sorted(by_word.items()):
        speakers = [sorted(by_speaker)[n] for n in rng.permutation(len(by_speaker))]
        chosen |= {by_speaker[speaker][0]: None for speaker in speakers[: PER_WORD if word in known else PER_OTHER]}
    lessons = [mine for by_speaker in by_word.values() for mine in by_speaker.values() if len(mine) >= N_TAUGHT]
    for n in rng.permutation(len(lessons))[:N_LESSONS]:
        chosen |= dict.fromkeys(lessons[n][:N_TAUGHT])
    counts = Counter(recording.word for recording in chosen)
    return [recording for recording in chosen if counts[recording.word] >= LEAST]


def word_alone(path: Path) -> Block:
    """Read a recording of one word and cut it with about the margins of the endpointer."""
    before, after = (round(seconds * SAMPLE_RATE_HZ) for seconds in MARGINS_S)
    waveform = high_pass(np.pad(read(path, SAMPLE_RATE_HZ), (before, after)))
    start, end = extent(waveform)
    return waveform[max(0, start - before) : end + after]


def cut_speech(root: Path) -> tuple[list[Block], float, float]:
    """Cut the training speech as one stream.

    Returns:
        the utterances that are not too long, the share of them that does not follow talk, and the hours of speech.
    """
    config = ListenerConfig()
    lengths = list[int]()
    paths = [r.path for r in index_others(root) if (r.source, r.part) == ("speech", "training")]
    pieces = (read(path, SAMPLE_RATE_HZ) for path in paths)
    found = list(utterances_in(counted(pieces, lengths), Segmenter(config, config.max_word_s)))
    if not found:
        raise DataError(f"no training speech under {root}; it is needed as the background")
    return [u.waveform for u in found if not u.is_long], share_alone(found), sum(lengths) / SAMPLE_RATE_HZ / 3600


def share_alone(utterances: Sequence[Utterance]) -> float:
    """The share of the utterances, without those that are too long, that does not follow talk."""
    talk_end, n_alone, n_short = -float("inf"), 0, 0
    for utterance in utterances:
        n_short += not utterance.is_long
        n_alone += not utterance.is_long and (
            utterance.start - max(talk_end, utterance.talk_end) >= ListenerConfig.after_talk_s * SAMPLE_RATE_HZ
        )
        if utterance.end - utterance.start > Decision.TALK_S * SAMPLE_RATE_HZ:
            talk_end = utterance.end
    return n_alone / max(1, n_short)


def write(bundle: Path, similarity: Similarity) -> None:
    """Write it into a bundle's metadata, replacing the file atomically."""
    model = onnx.load(str(bundle))
    kept = [prop for prop in model.metadata_props if prop.key != METADATA]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA, value=similarity.as_text())
    part = bundle.with_suffix(".part")
    onnx.save(model, part)
    part.replace(bundle)


def run(arguments: argparse.Namespace) -> None:
    recognizer = Recognizer.load(arguments.model)
    speech, alone, hours = cut_speech(arguments.root)
    background = np.stack([recognizer.embed(waveform) for waveform in speech])
    chosen = choose(arguments.root, recognizer.info.words, np.random.default_rng(0))
    vectors = np.stack([recognizer.embed(word_alone(recording.path)) for recording in chosen])
    words, speakers = [r.word for r in chosen], [r.speaker for r in chosen]
    similarity = make_similarity(vectors, words, speakers, background, hours, alone)
    write(arguments.model, similarity)
    print(
        f"{arguments.model}: {len(similarity.words)} words ({len(vectors)} recordings), {len(background)} utterances "
        f"in {hours:.1f} h of speech, {len(similarity.as_text()) / 1e6:.1f} MB; {similarity.expected}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.similarity", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (default: the shipped one)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    return exit_status(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
