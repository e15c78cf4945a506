"""Measure the gain of a language model of past commands: `python -m recipes.protocols.command_log --data.root DIR`.

Ten simulated people each have a Markov chain over the commands, with rows from a Dirichlet distribution.  Each chain
generates a log, from which a language model is counted, and separate test utterances, which are mixed from recordings
of the part as in the connected protocol.  The utterances are recognised without a language model, with the model of
the same person, and with that of another person, as if habits had changed.  False alarms are counted in speech without
commands.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from recipes.data.clips import SAMPLE_RATE_HZ, Waveform
from recipes.data.corpus import Corpus
from recipes.data.mixtures import Mixture, spoken_mixtures
from recipes.metrics import Estimate, estimate, write_json
from recipes.protocols.connected import Heard, add_options, counts, error_estimate, heard_in, load, noisy, words_of
from recipes.protocols.live import detections_in
from speech.bundle import BundleInfo
from speech.decide import Decision
from speech.errors import exit_status
from speech.grammar import Grammar, NGram
from speech.heads import Reader, SequenceReader
from speech.listener import thresholds_for
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.segment import ListenerConfig, Utterance, utterances_of

CONDITIONS: tuple[float | None, ...] = (None, 10.0, 5.0)
WEIGHTS = (SequenceReader.WEIGHT, 0.25)
PEOPLE = 10
SIZES = (1, 6)
"""Least and greatest number of words in an utterance; all numbers are equally frequent."""

Sentence = tuple[str, ...]


@dataclass(frozen=True)
class Habits:
    """The commands that a person usually says one after another: a Markov chain."""

    words: tuple[str, ...]
    first: NDArray[np.float64]
    """(words,) probability of each as the first word."""
    following: NDArray[np.float64]
    """(words, words) probability of each word after each."""

    @classmethod
    def draw(cls, words: Sequence[str], skew: float, rng: np.random.Generator) -> "Habits":
        """Draw each row from a Dirichlet distribution.

        Args:
            words: the commands.
            skew: concentration of the distribution, above 0.  Near 0 a word is nearly always followed by the same word;
                at 1 all rows are equally likely.
            rng: source of randomness.
        """
        weights = np.full(len(words), skew)
        return cls(tuple(words), rng.dirichlet(weights), rng.dirichlet(weights, len(words)))

    def say(self, n: int, rng: np.random.Generator) -> list[Sentence]:
        """Generate `n` utterances."""
        sentences = []
        for _ in range(n):
            chosen = [rng.choice(len(self.words), p=self.first)]
            for _ in range(int(rng.integers(SIZES[0], SIZES[1] + 1)) - 1):
                chosen.append(rng.choice(len(self.words), p=self.following[chosen[-1]]))
            sentences.append(tuple(self.words[i] for i in chosen))
        return sentences


@dataclass(frozen=True)
class Person:
    """Test utterances of a person, and the language model of the same person's log."""

    said: list[Sentence]
    language_model: NGram


def people(words: Sequence[str], known: Sequence[str], skew: float, n: int, n_log: int) -> list[Person]:
    """Ten people; reproducible.

    Args:
        words: the commands that they say.
        known: words of the bundle.
        skew: see `Habits.draw`.
        n: test utterances of each person.
        n_log: utterances in each log.
    """
    some = []
    for number in range(PEOPLE):
        rng = np.random.default_rng(number)
        habits = Habits.draw(words, skew, rng)
        language_model = NGram.train(habits.say(n_log, rng), known)
        some.append(Person(habits.say(n, rng), language_model))
    return some


def perplexity(some: Sequence[Person]) -> float:
    """Perplexity of the test utterances under the language models of their speakers."""
    return float(np.exp(-np.mean([
        person.language_model.log_prob(sentence[:place], word)
        for person in some for sentence in person.said for place, word in enumerate(sentence)
    ])))  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The results with one language model at one signal-to-noise ratio."""

    name: str
    snr_db: float | None
    whole: list[Heard]
    live: list[Heard]


def error_change(heard: Sequence[Heard], without: Sequence[Heard]) -> Estimate:
    """Error rate minus that of the same utterances without a language model; below 0: the model helps."""
    (errors, said), (before, _) = counts(heard), counts(without)
    value = (errors.sum() - before.sum()) / said.sum()
    return estimate(value, lambda e, b, n: (e - b) / n, errors, before, said)


@dataclass(frozen=True)
class Alarms:
    """False alarms of the Listener in speech without commands, when it accepts commands after talk."""

    hours: float
    counts: dict[str, float]
    """Without a language model, and for each weight the mean over the people's language models."""

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:.1f}" for name, count in self.counts.items())
        return f"  false alarms in {self.hours:.2f} h of speech, commands accepted after talk: {counts}"


@dataclass(frozen=True)
class Comparison:
    """The results of all language models for one skew."""

    part: str
    skew: float
    perplexity: float
    outcomes: list[list[Outcome]]
    """One list for each signal-to-noise ratio; its first entry is without a language model."""
    alarms: Alarms | None
    """None if the part has no speech without commands."""

    def __str__(self) -> str:
        lines = [
            f"command logs, {self.part}, skew {self.skew:g}, perplexity {self.perplexity:.1f}, "
            f"{len(self.outcomes[0][0].live)} utterances: command error rate, and its change, in %"
        ]
        for without, *others in self.outcomes:
            lines.append("  clean" if without.snr_db is None else f"  {without.snr_db:.0f} dB")
            for outcome in (without, *others):
                figures = []
                for name in ("whole", "live"):
                    heard, before = getattr(outcome, name), getattr(without, name)
                    figures.append(f"{name} {as_text(error_estimate(heard))}")
                    figures[-1] += "" if outcome is without else f"  {as_text(error_change(heard, before), '+')}"
                lines.append(f"    {outcome.name:24}" + "   ".join(f"{figure:42}" for figure in figures).rstrip())
        return "\n".join([*lines, *([str(self.alarms)] if self.alarms else [])])

    def as_dict(self) -> dict[str, object]:
        return {
            "part": self.part, "skew": self.skew, "perplexity": self.perplexity,
            "alarms": vars(self.alarms) if self.alarms else None,
            "outcomes": [
                {
                    "name": outcome.name, "snr_db": outcome.snr_db,
                    "whole": error_estimate(outcome.whole).as_dict(), "live": error_estimate(outcome.live).as_dict(),
                    "whole_change": error_change(outcome.whole, without.whole).as_dict(),
                    "live_change": error_change(outcome.live, without.live).as_dict(),
                }
                for without, *others in self.outcomes for outcome in (without, *others)
            ],
        }  # fmt: skip


def as_text(figure: Estimate, sign: str = "") -> str:
    """The figure and its interval in percent."""
    low, high = 100 * figure.low, 100 * figure.high
    return f"{100 * figure.value:{sign}6.2f} [{low:{sign}.1f}, {high:{sign}.1f}]"


class Once(Recognizer):
    """A Recognizer that caches the scores of each waveform."""

    def __init__(self, session: InferenceSession, info: BundleInfo) -> None:
        super().__init__(session, info)
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def scores(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        key = sha256(waveforms.tobytes()).digest()
        if key not in self._known:
            self._known[key] = super().scores(waveforms)
        return self._known[key]


def live(reader: Reader, utterances: Sequence[Utterance], n_samples: int, config: ListenerConfig) -> list[Detection]:
    """The detections of a Listener, given the utterances of a recording."""
    decision = Decision(reader, config)
    return detections_in(decision.decide(utterance, n_samples) for utterance in utterances)


class Hearing:
    """Recognises the mixtures at one signal-to-noise ratio, whole and live."""

    def __init__(
        self, recognizer: Recognizer, mixtures: Sequence[Mixture], audio: Sequence[Waveform], commands: Sequence[str]
    ) -> None:
        self._recognizer, self._mixtures, self._audio = recognizer, mixtures, audio
        self._thresholds, self._these = thresholds_for(recognizer, commands, None), Grammar.any_of(commands)
        config = ListenerConfig()
        self._cut = [utterances_of(waveform, config, config.max_sequence_s) for waveform in audio]

    def outcome(self, name: str, snr_db: float | None, models: Sequence[NGram | None], weight: float) -> Outcome:
        """The results with `models`, one for each mixture."""
        recognizer, config = self._recognizer, ListenerConfig()
        whole, cut = [], []
        for mixture, audio, utterances, model in zip(self._mixtures, self._audio, self._cut, models, strict=True):
            words = words_of(recognizer.transcribe(audio, SAMPLE_RATE_HZ, self._these, model, weight=weight))
            whole.append(heard_in(mixture, words))
            reader = SequenceReader(recognizer, self._thresholds, config, language_model=model, weight=weight)
            cut.append(heard_in(mixture, words_of(live(reader, utterances, len(audio), config))))
        return Outcome(name, snr_db, whole, cut)


@dataclass(frozen=True)
class Speech:
    """Speech without commands, cut into utterances."""

    utterances: list[Utterance]
    n_samples: int

    @classmethod
    def cut(cls, waveform: Waveform) -> "Speech":
        config = ListenerConfig()
        return cls(utterances_of(waveform, config, config.max_sequence_s), len(waveform))


def false_alarms(
    recognizer: Recognizer, speech: Speech, models: Sequence[NGram], weights: Sequence[float], commands: Sequence[str]
) -> Alarms:
    """Count false alarms in speech without commands."""
    config, thresholds = ListenerConfig(after_talk_s=0.0), thresholds_for(recognizer, commands, None)

    def count(model: NGram | None = None, weight: float = 0.0) -> int:
        reader = SequenceReader(recognizer, thresholds, config, language_model=model, weight=weight)
        return len(live(reader, speech.decide, speech.n_samples, config))

    counts = {"without": float(count())}
    for weight in weights:
        counts[f"weight {weight:g}"] = float(np.mean([count(model, weight) for model in models]))
    return Alarms(speech.n_samples / SAMPLE_RATE_HZ / 3600, counts)


def compare(recognizer: Recognizer, corpus: Corpus, speech: Speech | None, arguments: argparse.Namespace,
            commands: Sequence[str], skew: float) -> Comparison:  # fmt: skip
    """Measure all weights in all conditions for one skew."""
    some = people(commands, recognizer.info.words, skew, arguments.n // PEOPLE, arguments.log)
    others = [some[-1], *some[:-1]]
    mixtures = spoken_mixtures(corpus, arguments.part, [said for person in some for said in person.said], seed=0)
    n = len(mixtures) // PEOPLE
    own, another = ([person.language_model for person in these for _ in range(n)] for these in (some, others))
    conditions = []
    for snr_db in CONDITIONS if len(corpus.select(arguments.part, "noise")) else CONDITIONS[:1]:
        hearing = Hearing(recognizer, mixtures, noisy(mixtures, corpus, arguments.part, snr_db), commands)
        outcomes = [hearing.outcome("without", snr_db, [None] * len(mixtures), 0.0)]
        for weight in arguments.weights:
            outcomes.append(hearing.outcome(f"own log, weight {weight:g}", snr_db, own, weight))
            outcomes.append(hearing.outcome(f"another's, weight {weight:g}", snr_db, another, weight))
        conditions.append(outcomes)
    models = [person.language_model for person in some]
    alarms = false_alarms(recognizer, speech, models, arguments.weights, commands) if speech else None
    return Comparison(arguments.part, skew, perplexity(some), conditions, alarms)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.protocols.command_log", description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--n", type=int, default=200, help=f"test utterances in all, of {PEOPLE} people (default: 200)")
    parser.add_argument("--log", type=int, default=200, help="utterances in each person's log (default: 200)")
    parser.add_argument(
        "--skew", type=float, nargs="+", default=[0.1, 0.3], metavar="X",
        help="concentration of the chains' rows; the lower, the stronger the habits (default: 0.1 0.3)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=float, nargs="+", default=list(WEIGHTS), metavar="X",
        help=f"weights of the language model (default: of the Listener and of transcribe: {WEIGHTS[0]} {WEIGHTS[1]})",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.n < PEOPLE or arguments.log < 1 or not min(arguments.skew) > 0:
        parser.error(f"--n must be at least {PEOPLE}, --log 1, and --skew positive")
    return arguments


def run(arguments: argparse.Namespace) -> list[Comparison]:
    """Load the bundle and the recordings; print a comparison for each skew as soon as it is measured.

    Raises:
        SpeechError: the bundle or the data is missing, or the bundle recognises single words only.
    """
    recognizer, corpus, commands = load(arguments, Once)
    spoken = [corpus[int(i)] for i in corpus.select(arguments.part, "speech")]
    speech = Speech.cut(np.concatenate(spoken)) if spoken else None
    comparisons = []
    for skew in arguments.skew:
        comparisons.append(compare(recognizer, corpus, speech, arguments, commands, skew))
        print(comparisons[-1], flush=True)
    return comparisons


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def tell() -> None:
        comparisons = run(arguments)
        if arguments.json:
            write_json(arguments.json, {"model": arguments.model, "skews": [c.as_dict() for c in comparisons]})

    return exit_status(tell)


if __name__ == "__main__":
    sys.exit(main())
