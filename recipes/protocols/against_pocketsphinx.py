"""Sequences of commands against pocketsphinx 5: `python -m recipes.protocols.against_pocketsphinx --data.root DIR`.

Both recognise the same fixed mixtures, each as a whole and on one thread.  Our recogniser and pocketsphinx may output
the commands only.  pocketsphinx uses its bundled English model, 16-bit samples at 16 kHz and one utterance per
mixture.  Its settings are the defaults, including noise removal, which the model's own settings turn on.

pocketsphinx is measured in three ways:

- with a JSGF grammar of any number of commands (30 % errors clean, 149 % at 10 dB, where noise is recognised as
  commands);
- with an n-gram in which all commands are equally likely (17 % and 69 %);
- with this n-gram and a smaller word insertion penalty against insertions, chosen on 100 mixtures of the validation
  part (15 % and 43 %).

Our recogniser is compared with the one that has the fewest errors in each condition.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import log10
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.clips import SAMPLE_RATE_HZ, Waveform
from recipes.data.corpus import Corpus
from recipes.data.mixtures import fixed_mixtures
from recipes.metrics import Estimate, estimate, write_json
from recipes.protocols.connected import Heard, add_options, counts, error_estimate, hear, load, noisy, words_of
from speech.errors import DataError, SpeechError, exit_status
from speech.grammar import Grammar

CONDITIONS: tuple[float | None, ...] = (None, 10.0)
OURS, GRAMMAR, NGRAM, TUNED = "ours", "pocketsphinx, grammar", "pocketsphinx, n-gram", "pocketsphinx, tuned"
SEARCHES = (GRAMMAR, NGRAM, TUNED)
PENALTY = 1e-8
"""Word insertion penalty of `TUNED`: the best of 0.65 (the default), 1e-2, 1e-4, 1e-8 and 1e-12."""

Transcriber = Callable[[Waveform], Sequence[str]]
"""Audio (time,) at 16 kHz -> the commands in it."""


@dataclass(frozen=True)
class Result:
    """The results of one recogniser in one condition."""

    name: str
    heard: list[Heard]
    cpu_s: float
    """CPU seconds of decoding, all threads of the process."""
    audio_s: float

    @property
    def load(self) -> float:
        """CPU seconds per second of audio."""
        return self.cpu_s / self.audio_s

    @property
    def error_rate(self) -> Estimate:
        return error_estimate(self.heard)

    def __str__(self) -> str:
        errors, total = counts(self.heard).sum(1)
        rate = self.error_rate
        return (
            f"    {self.name:23}{100 * rate.value:6.2f} %  [{100 * rate.low:.1f}, {100 * rate.high:.1f}]  "
            f"{errors}/{total}   {1000 * self.load:6.1f} ms of CPU for 1 s"
        )

    def as_dict(self) -> dict[str, object]:
        errors, total = counts(self.heard).sum(1).tolist()
        rate = self.error_rate.as_dict()
        return {"name": self.name, "error_rate": rate, "errors": errors, "commands": total, "load": self.load}


def error_ratio(ours: Result, theirs: Result) -> Estimate:
    """Our errors over theirs; half an error is added to both so that zero errors are allowed."""
    (mine, _), (other, _) = counts(ours.heard), counts(theirs.heard)
    value = float((mine.sum() + 0.5) / (other.sum() + 0.5))
    return estimate(value, lambda a, b: (a + 0.5) / (b + 0.5), mine, other)


@dataclass(frozen=True)
class Condition:
    """The results of all recognisers in one condition."""

    snr_db: float | None
    """None: no noise added."""
    ours: Result
    others: list[Result]

    @property
    def best(self) -> Result:
        """The other recogniser with the fewest errors."""
        return min(self.others, key=lambda r: int(counts(r.heard)[0].sum()))

    def __str__(self) -> str:
        name = "clean" if self.snr_db is None else f"{self.snr_db:.0f} dB"
        ratio = error_ratio(self.ours, self.best)
        return "\n".join(
            [
                f"  {name}",
                *map(str, [self.ours, *self.others]),
                f"    ours over {self.best.name}: errors {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}], "
                f"CPU {self.ours.load / self.best.load:.2f}",
            ]
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "snr_db": self.snr_db,
            "results": [r.as_dict() for r in [self.ours, *self.others]],
            "best_other": self.best.name,
            "error_ratio": error_ratio(self.ours, self.best).as_dict(),
            "cpu_ratio": self.ours.load / self.best.load,
        }


@dataclass(frozen=True)
class Comparison:
    """The whole run."""

    part: str
    conditions: list[Condition]

    def __str__(self) -> str:
        n = len(self.conditions[0].ours.heard)
        title = f"connected commands against pocketsphinx, {self.part}, {n} mixtures: command error rate"
        return "\n".join([title, *map(str, self.conditions)])

    def as_dict(self) -> dict[str, object]:
        return {"part": self.part, "conditions": [c.as_dict() for c in self.conditions]}


class Timed:
    """A transcriber that adds up its CPU seconds."""

    def __init__(self, transcribe: Transcriber) -> None:
        self._transcribe, self.cpu_s = transcribe, 0.0

    def __call__(self, waveform: Waveform) -> Sequence[str]:
        begin = time.process_time()
        found = self._transcribe(waveform)
        self.cpu_s += time.process_time() - begin
        return found


def compare(
    ours: Transcriber, others: dict[str, Transcriber], corpus: Corpus, part: str, n: int, commands: Sequence[str]
) -> Comparison:
    """Run all recognisers on `n` fixed mixtures, clean and in noise."""
    if not all(len(corpus.select(part, "words", word)) for word in commands):
        raise DataError(f"the comparison needs recordings of all commands in the {part} part")
    mixtures = fixed_mixtures(corpus, part, n, commands, seed=0)
    conditions = []
    for snr_db in CONDITIONS if len(corpus.select(part, "noise")) else CONDITIONS[:1]:
        audio = noisy(mixtures, corpus, part, snr_db)
        audio_s = sum(map(len, audio)) / SAMPLE_RATE_HZ
        results = []
        for name, transcribe in {OURS: ours, **others}.items():
            timed = Timed(transcribe)
            results.append(Result(name, hear(mixtures, audio, timed), timed.cpu_s, audio_s))
        conditions.append(Condition(snr_db, results[0], results[1:]))
    return Comparison(part, conditions)


def pcm(waveform: Waveform) -> bytes:
    """16-bit little-endian samples, as a microphone delivers them."""
    return (np.clip(waveform, -1, 32767 / 32768) * 32768).round().astype("<i2").tobytes()


def jsgf(words: Sequence[str]) -> str:
    """A JSGF grammar of one or more of the words."""
    return f"#JSGF V1.0;\ngrammar commands;\npublic <commands> = ({' | '.join(words)})+;\n"


def arpa(words: Sequence[str]) -> str:
    """A unigram model in ARPA format in which each word and the end are equally likely."""
    log_prob = -log10(len(words) + 1)
    unigrams = ["-99 <s>", *(f"{log_prob:.5f} {word}" for word in ("</s>", *words))]
    return "\n".join(["\\data\\", f"ngram 1={len(unigrams)}", "", "\\1-grams:", *unigrams, "", "\\end\\", ""])


def excerpt(dictionary: str, words: Sequence[str]) -> str:
    """The lines of a pronunciation dictionary that belong to the words, such as `on(2) AO N`."""
    lines = (line for line in dictionary.splitlines() if line.partition(" ")[0].partition("(")[0] in words)
    return "".join(f"{line}\n" for line in lines)


def decoder(words: Sequence[str], search: str) -> Any:
    """A pocketsphinx decoder with its bundled model, for one of `SEARCHES`.

    Only the words' pronunciations are loaded.  The results are the same as with the whole dictionary of 134,000, which
    takes seconds to load.
    """
    from pocketsphinx import Config, Decoder, get_model_path

    with tempfile.TemporaryDirectory() as folder:
        path, pronunciations = Path(folder) / "commands", Path(folder) / "words.dict"
        path.write_text(jsgf(words) if search == GRAMMAR else arpa(words))
        full = Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8")
        pronunciations.write_text(excerpt(full, words))
        chosen: dict[str, Any] = {"lm": None, "jsgf": str(path)} if search == GRAMMAR else {"lm": str(path)}
        chosen |= {"wip": PENALTY} if search == TUNED else {}
        return Decoder(Config(**chosen, dict=str(pronunciations), loglevel="FATAL"))


def pocketsphinx(words: Sequence[str], search: str) -> Transcriber:
    """pocketsphinx as a transcriber."""
    decodes = decoder(words, search)

    def transcribe(waveform: Waveform) -> Sequence[str]:
        decodes.start_utt()
        decodes.process_raw(pcm(waveform), full_utt=True)
        decodes.end_utt()
        hypothesis = decodes.hyp()
        return hypothesis.hypstr.split() if hypothesis else []

    return transcribe


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.protocols.against_pocketsphinx", description=__doc__.split("\n")[0]
    )
    add_options(parser)
    parser.add_argument("--n", type=int, default=200, help="mixtures (default: 200)")
    arguments = parser.parse_args(argv)
    if arguments.n < 1:
        parser.error("--n must be positive")
    return arguments


def run(arguments: argparse.Namespace) -> Comparison:
    """Load the recognisers and compare them.

    Raises:
        SpeechError: pocketsphinx, the bundle or the data is missing, or the bundle has no CTC head.
    """
    if find_spec("pocketsphinx") is None:
        raise SpeechError("pocketsphinx is not installed: `uv sync --group bench`, or `uv pip install pocketsphinx`")
    recognizer, corpus, commands = load(arguments)
    others = {search: pocketsphinx(commands, search) for search in SEARCHES}

    words = recognizer.info.words
    these = Grammar.any_of([word for word in commands if word in words] or words)  # the same words for all

    def ours(waveform: Waveform) -> Sequence[str]:
        return words_of(recognizer.transcribe(waveform, SAMPLE_RATE_HZ, grammar=these))

    return compare(ours, others, corpus, arguments.part, arguments.n, commands)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def print_comparison() -> None:
        comparison = run(arguments)
        print(comparison)
        if arguments.json:
            write_json(arguments.json, {"model": arguments.model, **comparison.as_dict()})

    return exit_status(print_comparison)


if __name__ == "__main__":
    sys.exit(main())
