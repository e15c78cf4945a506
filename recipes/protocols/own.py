"""Own words: some recordings of a word are taught, and the others are tested as utterances of a stream.

Voice activity detection and network process each recording once; the taught recordings and the threshold only change
the decision.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.material.sounds import Waveform, set_level
from recipes.metrics import Share
from recipes.protocols.live import detections_in
from recipes.protocols.scenes import Recordings as Corpus
from recipes.protocols.scenes import speaker_of
from speech.bundle import UNKNOWN
from speech.decide import Decision
from speech.errors import DataError
from speech.heads import WordReader
from speech.own.forecast import forecast
from speech.own.matching import fit
from speech.own.similarity import Vectors
from speech.own.words import OwnWord, OwnWords
from speech.recognizer import Recognizer
from speech.results import Detection, Examined
from speech.segment import HOP, SAMPLE_RATE_HZ, ListenerConfig, Segmenter, Utterance, utterances_of

RECORDINGS = (3, 5, 10)
"""Numbers of recordings that a word is taught from."""
N_DRAWS = 2
"""Number of random draws of the recordings to teach."""
LEAST_HEARD = 2
"""Smallest number of recordings left for testing."""
MOST_HEARD = 40
"""Largest number of recordings of a group."""
BUDGET = 0.5
"""False alarms per hour of speech that the threshold may allow."""
THRESHOLDS = tuple(round(x, 3) for x in np.linspace(0.3, 0.98, 35))
"""Candidate thresholds, each for all own words."""
MOST_WORDS = 20
"""Largest number of words of each kind."""
N_BESIDE = 5
"""Number of own words taught together to measure their effect on the commands."""
K_BESIDE = 5
"""Recordings that each of these words is taught from."""
PAD = SAMPLE_RATE_HZ // 2
"""Samples of silence before and after a recording."""
SNR_DB = 10.0
N_COMPARED = 10
"""Predicted confusions that are compared with the measured ones."""


class Once(Recognizer):
    """A recogniser that caches the result of each utterance."""

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__(recognizer._session, recognizer.info)
        self._known: dict[bytes, tuple[NDArray[np.float32], Vectors]] = {}
        self.masked = ""
        """A word of the bundle to hide: its posterior is added to that of `_unknown_`."""

    def read(self, waveform: Waveform) -> tuple[NDArray[np.float32], Vectors]:
        key = hashlib.blake2b(waveform.tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = super().read(waveform)
        scores, embedding = self._known[key]
        if self.masked in self.info.words:
            scores, at = scores.copy(), self.info.labels.index(self.masked)
            scores[self.info.labels.index(UNKNOWN)] += scores[at]
            scores[at] = 0
        return scores, embedding

    def teach(self, *words: OwnWord) -> None:
        """Recognise these own words, in place of the previous ones, in addition to the bundle's words."""
        self.own = OwnWords(Path(), words)


@dataclass(frozen=True)
class Group:
    """Recordings of one word, by one speaker or by several."""

    word: str
    kind: str
    """Row of the table."""
    clean: list[list[Utterance]]
    """The utterances of each recording."""
    noisy: list[list[Utterance]]
    """The same with noise; empty if the corpus has none."""


def utterances_in(waveform: Waveform) -> list[Utterance]:
    config = ListenerConfig()
    return utterances_of(np.pad(waveform, PAD), config, config.max_word_s)


def group_of(corpus: Corpus, word: str, kind: str, indices: Sequence[int], rng: np.random.Generator) -> Group:
    """Cut the recordings of a word into utterances, without and with noise."""
    noise = corpus.select("training", "noise")
    clean, noisy = [], []
    for index in rng.permutation(indices)[:MOST_HEARD]:
        waveform = corpus[int(index)]
        clean.append(utterances_in(waveform))
        if len(noise):
            length = len(waveform) + 2 * PAD
            level_db = 20 * np.log10(np.sqrt(np.square(waveform).mean()) + 1e-9) - SNR_DB
            bed = set_level(corpus.crop(int(rng.choice(noise)), rng, length), level_db)
            config = ListenerConfig()
            noisy.append(utterances_of(np.clip(np.pad(waveform, PAD) + bed, -1, 1), config, config.max_word_s))
    return Group(word, kind, clean, noisy)


def groups_by_speaker(corpus: Corpus, rng: np.random.Generator) -> list[Group]:
    """Groups of one word by one speaker, recorded at home, with enough recordings."""
    found: dict[tuple[str, str], list[int]] = {}
    for index in corpus.select("validation", "home"):
        recording = corpus.recordings[index]
        found.setdefault((recording.word, recording.path.name.split("_")[0]), []).append(int(index))
    return [
        group_of(corpus, word, "same speaker, at home", indices, rng)
        for (word, _), indices in sorted(found.items())
        if len(indices) >= RECORDINGS[0] + LEAST_HEARD
    ]


def groups_by_word(corpus: Corpus, known: Sequence[str], rng: np.random.Generator) -> list[Group]:
    """Groups of words outside the bundle's vocabulary, with one recording per speaker and enough speakers."""
    groups = []
    for kind, source, parts in (
        ("other speakers", "words", ("validation", "testing")),
        ("other speakers, met in training", "words", ("training",)),
        ("other voices, synthetic", "voices", ("training",)),
    ):
        found: dict[str, dict[str, int]] = {}
        for index, recording in enumerate(corpus.recordings):
            if recording.source == source and recording.part in parts and recording.word not in known:
                found.setdefault(recording.word, {})[speaker_of(recording.path)] = index
        words = [word for word in sorted(found) if len(found[word]) >= RECORDINGS[0] + LEAST_HEARD]
        chosen = rng.permutation(words)[:MOST_WORDS]
        groups += [group_of(corpus, str(w), kind, sorted(found[str(w)].values()), rng) for w in sorted(chosen)]
    return groups


def in_one_piece(recordings: Iterable[list[Utterance]]) -> list[Waveform]:
    """The waveforms of the recordings that are a single utterance, and not too long."""
    return [found[0].waveform for found in recordings if len(found) == 1 and not found[0].is_long]


def taught(once: Once, word: str, recordings: Iterable[list[Utterance]]) -> OwnWord | None:
    """Learn a word from the recordings that are a single utterance; None if there are none."""
    waveforms = in_one_piece(recordings)
    model = fit(once.similarity, once.embed, waveforms) if waveforms else None
    return OwnWord(word, (), model, once.similarity.key) if model else None


def heard(once: Once, utterances: Iterable[Utterance], after_talk_s: float) -> list[Detection]:
    """The detections of a Listener whose thresholds are almost 0."""
    config = ListenerConfig(after_talk_s=after_talk_s)
    decision = Decision(WordReader(once, dict.fromkeys(once.words, 1e-6), config), config)
    return detections_in(decision.decide(utterance, utterance.closed) for utterance in utterances)


def confidences_of(once: Once, word: str, recordings: Iterable[list[Utterance]]) -> list[float]:
    """The confidence of the word in each recording; 0 if it was not recognised."""
    found = []
    for utterances in recordings:
        detections = heard(once, utterances, after_talk_s=0.0)
        found.append(max((d.confidence for d in detections if d.word == word), default=0.0))
    return found


@dataclass(frozen=True)
class Trial:
    """A word taught from some recordings, tested on the others and on speech."""

    word: str
    kind: str
    k: int
    """Number of recordings taught."""
    clean: list[float]
    """Confidence of each other recording; 0 if the word was not recognised."""
    noisy: list[float]
    """The same in noise."""
    alarms: list[float]
    """Confidence of each false alarm in speech."""
    predicted: float | None
    """Share of misses that the forecast predicts; None if it makes no prediction."""


@dataclass(frozen=True)
class Row:
    """All trials of one kind with `k` recordings taught."""

    kind: str
    k: int
    threshold: float
    """Threshold of all words: the bundle's, or the lowest candidate within the budget, or else the highest."""
    alarms_per_hour: float
    """False alarms per hour and own word."""
    clean: Share
    noisy: Share
    predicted: float
    n_words: int

    def __str__(self) -> str:
        return (
            f"  {self.kind:33} k {self.k:2}  {self.n_words:3} words  threshold {self.threshold:.2f}  "
            f"alarms/h {self.alarms_per_hour:5.2f}  missed {self.clean}   10 dB {self.noisy}   "
            f"forecast {100 * self.predicted:.0f} %"
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"clean": self.clean.as_dict(), "noisy": self.noisy.as_dict()}


def row_of(trials: Sequence[Trial], hours: float, threshold: float | None) -> Row:
    """The figures of trials of one kind, at `threshold` or, if that is None, at the budget."""

    def rate(at: float) -> float:
        return sum(c >= at for t in trials for c in t.alarms) / max(hours * len(trials), 1e-9)

    if threshold is None:
        threshold = next((at for at in THRESHOLDS if rate(at) <= BUDGET), THRESHOLDS[-1])
    clean, noisy = ([c for t in trials for c in getattr(t, name)] for name in ("clean", "noisy"))
    return Row(
        trials[0].kind,
        trials[0].k,
        threshold,
        rate(threshold),
        Share(sum(c < threshold for c in clean), len(clean)),
        Share(sum(c < threshold for c in noisy), len(noisy)),
        float(np.mean([t.predicted for t in trials if t.predicted is not None] or [np.nan])),
        len({t.word for t in trials}),
    )


@dataclass(frozen=True)
class Commands:
    """Recognition of the commands without and with own words."""

    own: tuple[str, ...]
    missed_alone: Share
    missed_beside: Share
    taken_for_own: Share
    """Commands in which an own word was recognised."""
    own_taken: Share
    """Recordings of own words in which a command was recognised."""

    def __str__(self) -> str:
        return (
            f"  commands beside {', '.join(self.own)}:\n"
            f"    missed alone {self.missed_alone}   beside them {self.missed_beside}\n"
            f"    commands taken for an own word {self.taken_for_own}   own words taken for one {self.own_taken}"
        )


@dataclass(frozen=True)
class Own:
    """The figures of the protocol."""

    part: str
    hours: float
    at_budget: list[Row]
    at_default: list[Row]
    commands: Commands | None
    predicted: list[tuple[str, str, float, float]]
    """Own word, word taken for it, predicted share, measured share; sorted by predicted share, highest first."""
    n_right: int
    """Number of the first `N_COMPARED` predicted pairs that are among the `2 * N_COMPARED` most frequent measured."""
    awake_alarms: int
    """False alarms in speech with an own word as the wake word."""

    def __str__(self) -> str:
        lines = [
            f"own words, {self.part}: some recordings taught, the others tested as utterances of a stream; "
            f"alarms in {self.hours:.2f} h of speech, per own word",
            f"  at most {BUDGET:g} alarms per hour:",
            *map(str, self.at_budget),
            "  at the bundle's threshold:",
            *map(str, self.at_default),
            *([str(self.commands)] if self.commands else []),
            f"  predicted confusions: {self.n_right} of the first {min(N_COMPARED, len(self.predicted))} are among the "
            f"{2 * N_COMPARED} most frequent measured",
            *(f"    {b!r} taken for {a!r}: predicted {100 * p:.0f} %, measured {100 * m:.0f} %"
              for a, b, p, m in self.predicted[:N_COMPARED]),
            f"  with a wake word: {self.awake_alarms} false alarms in {self.hours:.2f} h of speech",
        ]  # fmt: skip
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        commands = self.commands and {k: v.as_dict() if isinstance(v, Share) else v for k, v in
                                      vars(self.commands).items()}  # fmt: skip
        rows = {name: [row.as_dict() for row in getattr(self, name)] for name in ("at_budget", "at_default")}
        return asdict(replace(self, at_budget=[], at_default=[], commands=None)) | rows | {"commands": commands}


def cut_stream(corpus: Corpus, indices: Iterable[int]) -> tuple[list[Utterance], float]:
    """Cut recordings, concatenated to one stream, into utterances; return these and the hours of audio."""
    config = ListenerConfig()
    segmenter = Segmenter(config, config.max_word_s)
    rest, found, n_samples = np.zeros(0, np.float32), [], 0
    for index in indices:
        stream = np.concatenate([rest, corpus[index]])
        whole = len(stream) // HOP * HOP
        found += [u for u in map(segmenter.push, stream[:whole].reshape(-1, HOP)) if u]
        rest, n_samples = stream[whole:], n_samples + whole
    return found, n_samples / SAMPLE_RATE_HZ / 3600


def try_out(once: Once, group: Group, k: int, speech: Sequence[Utterance], rng: np.random.Generator) -> Trial | None:
    """Teach `k` recordings of a group, test on the others and on speech; None if the word cannot be learnt."""
    order = rng.permutation(len(group.clean))
    known, rest = order[:k], order[k:]
    once.masked = group.word
    word = taught(once, group.word, [group.clean[i] for i in known])
    if word is None:
        return None
    once.teach(word)
    recordings = in_one_piece(group.clean[i] for i in known)
    alarms = [d.confidence for d in heard(once, speech, ListenerConfig.after_talk_s) if d.word == word.name]
    trial = Trial(
        group.word,
        group.kind,
        k,
        confidences_of(once, word.name, [group.clean[i] for i in rest]),
        confidences_of(once, word.name, [group.noisy[i] for i in rest if group.noisy]),
        alarms,
        forecast(word, recordings, OwnWords(Path(), [word]), once).missed,
    )
    once.masked = ""
    return trial


def learnt_words(once: Once, groups: Iterable[Group], k: int) -> dict[str, tuple[OwnWord, Group]]:
    """Learn each word outside the bundle's vocabulary from the first `k` recordings of its group."""
    found = {}
    for group in groups:
        if group.word not in once.info.words and len(group.clean) >= k + LEAST_HEARD:
            word = taught(once, group.word, group.clean[:k])
            if word:
                found[group.word] = (word, group)
    return found


def commands_beside(
    once: Once, learnt: Mapping[str, tuple[OwnWord, Group]], commands: Mapping[str, list[list[Utterance]]], k: int
) -> Commands:
    """Measure confusions between commands and the first `N_BESIDE` own words.

    Args:
        learnt: own words, each with its group.
        commands: the utterances of each recording of each command.
        k: recordings that the own words were taught from.
    """
    least, chosen = once.info.threshold, list(learnt)[:N_BESIDE]
    counts: Counter[str] = Counter()
    total = sum(map(len, commands.values()))
    for mine in ((), tuple(learnt[name][0] for name in chosen)):
        once.teach(*mine)
        for word, recordings in commands.items():
            for utterances in recordings:
                found = {d.word for d in heard(once, utterances, 0.0) if d.confidence >= least}
                counts["beside" if mine else "alone"] += word not in found
                counts["taken"] += bool(found & set(chosen))
    said = [utterances for name in chosen for utterances in learnt[name][1].clean[k:]]
    for utterances in said:
        counts["own taken"] += any(d.word in commands and d.confidence >= least for d in heard(once, utterances, 0.0))
    return Commands(
        tuple(chosen),
        Share(counts["alone"], total),
        Share(counts["beside"], total),
        Share(counts["taken"], total),
        Share(counts["own taken"], len(said)),
    )


def compare_confusions(
    once: Once, learnt: Mapping[str, tuple[OwnWord, Group]], commands: Mapping[str, list[list[Utterance]]]
) -> tuple[list[tuple[str, str, float, float]], int]:
    """Compare predicted with measured confusions; return `Own.predicted` and `Own.n_right`."""
    recordings = {name: group.clean for name, (_, group) in learnt.items()} | dict(commands)
    measured, predicted = {}, {}
    for name, (word, group) in learnt.items():
        once.teach(word)
        known = in_one_piece(group.clean[:K_BESIDE])
        for confusion in forecast(word, known, OwnWords(Path(), [word]), once).confusions:
            predicted[name, confusion.word] = confusion.share
        for other, said in recordings.items():
            if other != name:
                hits = [c >= once.info.threshold for c in confidences_of(once, name, said)]
                measured[name, other] = float(np.mean(hits))
    first = sorted((pair for pair in predicted if pair in measured), key=lambda pair: -predicted[pair])
    frequent = sorted((pair for pair in measured if measured[pair]), key=lambda pair: -measured[pair])[: 2 * N_COMPARED]
    compared = [(*pair, predicted[pair], measured[pair]) for pair in first]
    return compared, sum(pair in frequent for pair in first[:N_COMPARED])


def count_awake(once: Once, learnt: Mapping[str, tuple[OwnWord, Group]], speech: Sequence[Utterance]) -> int:
    """Count false alarms in speech when the first own word is required as the wake word."""
    name = next(iter(learnt), None)
    if name is None:
        return 0
    once.teach(learnt[name][0])
    config = ListenerConfig()
    decision = Decision(WordReader(once, once.thresholds, config), config, wake=name)
    examined: list[Examined] = [decision.decide(utterance, utterance.closed) for utterance in speech]
    return sum(d.word != name for one in examined for d in one.detections)


def evaluate_own(recognizer: Recognizer, corpus: Corpus, part: str, commands: Sequence[str]) -> Own:
    """Teach words outside the vocabulary and test them, with the same speaker and with others.

    Raises:
        DataError: too few recordings of words outside the vocabulary.
    """
    once, rng = Once(recognizer), np.random.default_rng(0)
    speech, hours = cut_stream(corpus, corpus.select(part, "speech").tolist())
    groups = groups_by_speaker(corpus, rng) + groups_by_word(corpus, recognizer.info.words, rng)
    if not groups:
        raise DataError("no word outside the vocabulary has enough recordings to teach it")
    trials: dict[tuple[str, int], list[Trial]] = {}
    for group in groups:
        for k in RECORDINGS:
            if len(group.clean) >= k + LEAST_HEARD:
                tried = [try_out(once, group, k, speech, rng) for _ in range(N_DRAWS)]
                trials.setdefault((group.kind, k), []).extend(trial for trial in tried if trial)
    once.masked = ""
    spoken = {
        word: [utterances_in(corpus[int(i)]) for i in rng.permutation(corpus.select(part, "words", word))[:MOST_HEARD]]
        for word in commands
    }
    learnt = learnt_words(once, groups, K_BESIDE)
    predicted, n_right = compare_confusions(once, learnt, spoken)
    return Own(
        part,
        hours,
        [row_of(some, hours, None) for some in trials.values() if some],
        [row_of(some, hours, recognizer.info.threshold) for some in trials.values() if some],
        commands_beside(once, learnt, spoken, K_BESIDE) if learnt else None,
        predicted,
        n_right,
        count_awake(once, learnt, speech),
    )


def draw_own(result: Own, target: Path) -> None:
    """Draw misses against the number of recordings taught, at the budget of false alarms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panes = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(panes, ("clean", "noisy"), ("Clean", f"Noise at {SNR_DB:.0f} dB"), strict=True):
        for kind in sorted({row.kind for row in result.at_budget}):
            rows = [row for row in result.at_budget if row.kind == kind]
            axes.plot([r.k for r in rows], [100 * getattr(r, name).value for r in rows], marker="o", label=kind)
        axes.set(xlabel="recordings taught", title=title, xticks=RECORDINGS)
        axes.grid(alpha=0.3)
    panes[0].set(ylabel=f"missed (%) at {BUDGET:g} false alarms per hour", ylim=(0, None))
    panes[0].legend()
    figure.suptitle(f"Own words, {result.part}")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
