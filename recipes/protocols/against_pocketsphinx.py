"""pocketsphinx 5 as a reader of the connected protocol, with its bundled English model and its default settings.

It may output the commands only, and reads each mixture as one utterance of 16-bit samples, in three ways:

- with a JSGF grammar of any number of commands;
- with an n-gram in which all commands are equally likely;
- with this n-gram and a smaller word insertion penalty against insertions.
"""

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from math import log10
from pathlib import Path
from typing import Any

from recipes.data.sounds import Waveform
from recipes.protocols.connected import Answer, Reader
from speech.errors import SpeechError
from speech.sound.files import pcm

GRAMMAR, NGRAM, TUNED = "pocketsphinx, grammar", "pocketsphinx, n-gram", "pocketsphinx, tuned"
PENALTY = 1e-8
"""Word insertion penalty of `TUNED`: on validation the best of 0.65 (the default), 1e-2, 1e-4, 1e-8 and 1e-12."""


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
    """A pocketsphinx decoder for one of the three ways.

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


def pocketsphinx_reader(words: Sequence[str], search: str) -> Reader:
    decodes = decoder(words, search)

    def read(waveform: Waveform) -> Answer:
        decodes.start_utt()
        decodes.process_raw(pcm(waveform), full_utt=True)
        decodes.end_utt()
        hypothesis = decodes.hyp()
        return Answer(hypothesis.hypstr.split() if hypothesis else [])

    return read


def pocketsphinx_readers(words: Sequence[str]) -> dict[str, Reader]:
    """pocketsphinx in its three ways, by name.  Raises SpeechError if it is not installed."""
    if find_spec("pocketsphinx") is None:
        raise SpeechError("pocketsphinx is not installed: `uv sync --group bench`, or `uv pip install pocketsphinx`")
    return {search: pocketsphinx_reader(words, search) for search in (GRAMMAR, NGRAM, TUNED)}
