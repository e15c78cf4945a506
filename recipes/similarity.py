"""Prepare a bundle for own words: `python -m recipes.similarity --model BUNDLE --data.root DIR`.

Cuts training speech into utterances as the live path does, embeds these and training words, and adds the result,
described in `speech.own.similarity`, to the bundle's metadata.  Nothing else in the bundle changes.  The utterances are
cached, so for the next bundle only the embeddings are computed.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from recipes.data.clips import as_float, extent
from recipes.data.corpus import Recording, index_others, index_words, speaker_of
from speech.bundle import DEFAULT_MODEL
from speech.errors import DataError, exit_status
from speech.own.similarity import METADATA, Similarity, make_similarity
from speech.recognizer import Recognizer
from speech.segment import HOP, SAMPLE_RATE_HZ, ListenerConfig, Segmenter, high_pass
from speech.sound.files import Block, read

PER_WORD = 24
"""Recordings of each word of the bundle, by different speakers if there are enough."""
PER_OTHER = 8
"""Recordings of each other word."""
LEAST = 3
"""Words with fewer recordings are left out."""
MARGINS_S = (0.3, 0.3)
"""Audio kept before and after a single word."""
MOST_BACKGROUND = 3000
"""Largest number of background utterances that are used."""


def choose(root: Path, known: Sequence[str], rng: np.random.Generator) -> list[Recording]:
    """Choose training recordings of every word, by as many speakers as possible."""
    by_word: dict[str, list[Recording]] = {}
    for recording in index_words(root, 0.0):
        if recording.part == "training":
            by_word.setdefault(recording.word, []).append(recording)
    chosen = []
    for recordings in by_word.values():
        by_speaker: dict[str, list[Recording]] = {}
        for n in rng.permutation(len(recordings)):
            by_speaker.setdefault(speaker_of(recordings[n].path), []).append(recordings[n])
        ordered = sorted(((n, r) for mine in by_speaker.values() for n, r in enumerate(mine)), key=lambda x: x[0])
        chosen += [r for _, r in ordered[: PER_WORD if recordings[0].word in known else PER_OTHER]]
    for folder in sorted((root / "voices").glob("*")):
        paths = sorted(folder.glob("*.wav"))
        some = rng.permutation(len(paths))[:PER_OTHER]
        chosen += [Recording(paths[n], folder.name, "training", "voices") for n in some]
    counts = Counter(recording.word for recording in chosen)
    return [recording for recording in chosen if counts[recording.word] >= LEAST]


def word_alone(path: Path) -> Block:
    """Read a recording of one word and cut it with about the margins of the endpointer."""
    before, after = (round(seconds * SAMPLE_RATE_HZ) for seconds in MARGINS_S)
    waveform = high_pass(np.pad(read(path, SAMPLE_RATE_HZ), (before, after)))
    start, end = extent(waveform)
    return waveform[max(0, start - before) : end + after]


def cut_speech(root: Path) -> tuple[list[Block], float]:
    """Cut the training speech as one stream; return the utterances that are not too long, and the hours of speech."""
    config = ListenerConfig()
    segmenter = Segmenter(config, config.max_word_s)
    rest, found, n_samples = np.zeros(0, np.float32), [], 0
    for recording in index_others(root):
        if recording.source != "speech" or recording.part != "training":
            continue
        stream = np.concatenate([rest, read(recording.path, SAMPLE_RATE_HZ)])
        whole = len(stream) // HOP * HOP
        utterances = [segmenter.push(hop) for hop in stream[:whole].reshape(-1, HOP)]
        found += [u.waveform for u in utterances if u and not u.is_long]
        rest, n_samples = stream[whole:], n_samples + whole
    return found, n_samples / SAMPLE_RATE_HZ / 3600


def cached_speech(root: Path, cache: Path) -> tuple[list[Block], float]:
    """`cut_speech`, from the cache if recordings and settings have not changed."""
    files = [(r.path.name, r.path.stat().st_size) for r in index_others(root) if r.source == "speech"]
    key = hashlib.sha256(repr((files, ListenerConfig())).encode()).hexdigest()[:16]
    target = cache / f"utterances-{key}.npz"
    if not target.is_file():
        found, hours = cut_speech(root)
        samples = [(np.clip(waveform, -1, 1) * 32767).round().astype(np.int16) for waveform in found]
        cache.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part.npz")
        np.savez(part, samples=np.concatenate(samples), ends=np.cumsum([len(s) for s in samples]), hours=hours)
        part.replace(target)
    with np.load(target, allow_pickle=False) as kept:
        return list(map(as_float, np.split(kept["samples"], kept["ends"][:-1]))), float(kept["hours"])


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
    speech, hours = cached_speech(arguments.root, arguments.cache or arguments.root / "cache")
    if not speech:
        raise DataError(f"no training speech under {arguments.root}; it is needed as the background")
    background = np.stack([recognizer.embed(waveform) for waveform in speech[:MOST_BACKGROUND]])
    chosen = choose(arguments.root, recognizer.info.words, np.random.default_rng(0))
    vectors = np.stack([recognizer.embed(word_alone(recording.path)) for recording in chosen])
    similarity = make_similarity(vectors, [recording.word for recording in chosen], background, hours)
    write(arguments.model, similarity)
    print(
        f"{arguments.model}: {len(similarity.words)} words ({len(vectors)} recordings), {len(background)} utterances "
        f"in {hours:.1f} h of speech, {len(similarity.as_text()) / 1e6:.1f} MB"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.similarity", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (default: the shipped one)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.add_argument("--data.cache", dest="cache", type=Path, metavar="DIR", help="default: DIR/cache")
    return exit_status(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
