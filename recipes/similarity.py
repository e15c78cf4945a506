"""Let a bundle learn own words: `python -m recipes.similarity --model BUNDLE --data.root DIR`.

Cuts training words and speech as the live path does, embeds them, and writes into the bundle's metadata what
`speech.similarity` describes.  The bundle stays as it is otherwise.  What was cut is cached: the next bundle takes
only as long as its network.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import soundfile
from numpy.typing import NDArray

from speech.activity import SAMPLE_RATE_HZ, ListenerConfig, utterances_of
from speech.audio import Block
from speech.bundle import DEFAULT_MODEL, SILENCE, UNKNOWN
from speech.errors import DataError, told
from speech.recognizer import Recognizer
from speech.similarity import METADATA, Similarity, make_similarity
from speech.training.data import Recording, as_float, index_others, index_words, speaker_of

PER_WORD = 40
"""Recordings of a word of the bundle, each by another speaker where there are so many."""
PER_OTHER = 12
"""Recordings of a word outside it."""
LEAST = 3
"""Recordings under which a word is left out."""
SPEECH_H = 3.0
"""Hours of speech for the background."""
MOST_BACKGROUND = 3000
"""Utterances of the background that are kept."""


@dataclass(frozen=True)
class Cuts:
    """Utterances as the endpointer cuts them."""

    words: tuple[str, ...]
    """Of each; "" for running speech."""
    waveforms: tuple[NDArray[np.int16], ...]
    hours: float
    """Of running speech."""


def choose(root: Path, known: Sequence[str], rng: np.random.Generator) -> list[Recording]:
    """Some training recordings of every word, by as many speakers as there are."""
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
    return chosen


def utterances(path: Path, config: ListenerConfig) -> Iterator[Block]:
    """Those of a recording that a bundle of single words reads; silence is set around a short one."""
    stored, rate = soundfile.read(path, dtype="int16")
    if rate != SAMPLE_RATE_HZ or stored.ndim != 1:
        raise DataError(f"{path} must be {SAMPLE_RATE_HZ} Hz mono")
    waveform = as_float(stored)
    if len(waveform) < 2 * SAMPLE_RATE_HZ:
        waveform = np.pad(waveform, round(0.4 * SAMPLE_RATE_HZ))
    yield from (u.waveform for u in utterances_of(waveform, config, config.max_word_s) if not u.is_long)


def cut(root: Path, known: Sequence[str], rng: np.random.Generator) -> Cuts:
    """Utterances of words, and of running speech without commands."""
    config = ListenerConfig()
    speech = [r for r in index_others(root) if r.source == "speech" and r.part == "training"]
    words: list[str] = []
    waveforms: list[NDArray[np.int16]] = []

    def keep(word: str, found: Iterable[Block]) -> None:
        for waveform in found:
            words.append(word)
            waveforms.append((np.clip(waveform, -1, 1) * 32767).round().astype(np.int16))

    for recording in choose(root, known, rng):
        found = list(utterances(recording.path, config))
        keep(recording.word, found if len(found) == 1 else [])  # a word in two pieces is not one
    n_samples = 0
    for n in rng.permutation(len(speech)):
        if n_samples >= SPEECH_H * 3600 * SAMPLE_RATE_HZ:
            break
        n_samples += soundfile.info(speech[n].path).frames
        keep("", utterances(speech[n].path, config))
    return Cuts(tuple(words), tuple(waveforms), n_samples / SAMPLE_RATE_HZ / 3600)


def cached_cut(root: Path, cache: Path, known: Sequence[str]) -> Cuts:
    """The same, from the cache where the data and the settings are those of then."""
    files = sorted((str(r.path), r.path.stat().st_size) for r in [*index_words(root, 0.0), *index_others(root)])
    files += sorted((str(path), path.stat().st_size) for path in (root / "voices").glob("*/*.wav"))
    settings = (ListenerConfig(), PER_WORD, PER_OTHER, SPEECH_H, tuple(known))
    target = cache / f"utterances-{hashlib.sha256(repr((files, settings)).encode()).hexdigest()[:16]}.npz"
    if not target.is_file():
        cuts = cut(root, known, np.random.default_rng(0))
        cache.mkdir(parents=True, exist_ok=True)
        ends = np.cumsum([len(w) for w in cuts.waveforms])
        part = target.with_suffix(".part.npz")
        np.savez(part, words=np.array(cuts.words), samples=np.concatenate(cuts.waveforms), ends=ends, hours=cuts.hours)
        part.replace(target)
    with np.load(target, allow_pickle=False) as kept:
        pieces = np.split(kept["samples"], kept["ends"][:-1])
        return Cuts(tuple(map(str, kept["words"])), tuple(pieces), float(kept["hours"]))


def write(bundle: Path, similarity: Similarity) -> None:
    """Put it into a bundle's metadata, in one step."""
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
    known = [word for word in recognizer.info.labels if word not in (UNKNOWN, SILENCE)]
    cuts = cached_cut(arguments.root, arguments.cache or arguments.root / "cache", known)
    vectors = np.stack([recognizer.embed(as_float(waveform)) for waveform in cuts.waveforms])
    is_word = np.array([bool(word) for word in cuts.words])
    enough = {word for word in set(cuts.words) if cuts.words.count(word) >= LEAST}
    is_used = is_word & np.array([word in enough for word in cuts.words])
    words = [word for word, used in zip(cuts.words, is_used, strict=True) if used]
    background = vectors[~is_word][:MOST_BACKGROUND]
    similarity = make_similarity(vectors[is_used], words, background, cuts.hours)
    write(arguments.model, similarity)
    print(
        f"{arguments.model}: {len(similarity.words)} words ({len(words)} recordings), {len(background)} utterances "
        f"from {cuts.hours:.1f} h of speech, {len(similarity.as_text()) / 1e6:.1f} MB"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.similarity", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="bundle (default: the shipped one)")
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="the data folder")
    parser.add_argument("--data.cache", dest="cache", type=Path, metavar="DIR", help="default: DIR/cache")
    return told(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
