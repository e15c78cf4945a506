"""Own words: some recordings of a word are taught, and the others are heard as utterances of a stream.

Voice activity detection and network process each recording once; what is taught only changes the decision.  A word of
the bundle is taught as if the bundle did not know it: its posterior is added to that of `_unknown_`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes.data.sounds import Waveform, set_level
from recipes.metrics import Rate, Share
from recipes.protocols.scenes import Recordings
from speech.bundle import SILENCE, UNKNOWN
from speech.decide import Decision
from speech.errors import DataError
from speech.own.forecast import expected_misses
from speech.own.lesson import largest_group
from speech.own.matching import WordModel, fit, with_own_words
from speech.own.similarity import Vectors
from speech.recognizer import Recognizer
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Segmenter, counted, utterances_in, utterances_of

MOST_WORDS = 40
"""Largest number of words of each kind."""
MOST_HEARD = 40
"""Largest number of recordings of a word."""
MOST_OTHERS = 300
"""Recordings of other words."""
N_DRAWS = 2
"""Random draws of the recordings that are taught."""
ENOUGH = 5
"""Recordings heard from which a share of misses is compared with its forecast."""
PAD = SAMPLE_RATE_HZ // 2
"""Samples of silence before and after a recording."""
SNR_DB = 10.0


@dataclass(frozen=True)
class Heard:
    """One utterance as the network reads it."""

    vector: Vectors
    posteriors: dict[str, float]


@dataclass(frozen=True)
class Said:
    """A recording: its utterances, without and with noise; those that are too long are missing."""

    word: str
    clean: list[Heard]
    noisy: list[Heard]


@dataclass
class Row:
    """The words of one kind, taught from `k` recordings by each speaker."""

    kind: str
    k: int
    n_words: int = 0
    alarms: int = 0
    counts: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    """For each recording of the word: whether it was missed, also in noise, or taken for a word of the bundle; for each
    recording of another word: whether it was taken for the word."""
    forecasts: list[tuple[float, float, float]] = field(default_factory=list)
    """For each word: least and largest share of misses that are forecast, and the share measured."""

    @property
    def within(self) -> Share:
        """Words whose share of misses lies in the forecast, which is printed in whole percent."""
        inside = [low - 0.01 <= share <= high + 0.01 for low, high, share in self.forecasts]
        return Share(sum(inside), len(inside))

    def figures(self, hours: float) -> dict[str, Share | Rate]:
        rates: dict[str, Share | Rate] = {"alarms": Rate(self.alarms, hours * self.n_words), "forecast": self.within}
        return {name: Share(sum(values), len(values)) for name, values in self.counts.items()} | rates


@dataclass(frozen=True)
class Own:
    """The figures of the protocol."""

    part: str
    hours: float
    """Of speech without commands."""
    rows: list[Row]
    shares: dict[str, Share]
    """Lessons of four recordings in which one was taken for another word; misses of words of the bundle."""

    def __str__(self) -> str:
        lines = [f"own words, {self.part}: some recordings taught, the others heard; {self.hours:.2f} h of speech"]
        for row in self.rows:
            lines.append(f"  {row.kind}, {row.k} recordings each, {row.n_words} words and draws:")
            lines += [f"    {name:18} {value}" for name, value in row.figures(self.hours).items()]
        return "\n".join([*lines, *(f"  {name:39} {share}" for name, share in self.shares.items())])

    def as_dict(self) -> dict[str, object]:
        rows = [
            {"kind": row.kind, "k": row.k, "words": row.n_words, "forecasts": row.forecasts}
            | {name: value.as_dict() for name, value in row.figures(self.hours).items()}
            for row in self.rows
        ]
        shares = {name: share.as_dict() for name, share in self.shares.items()}
        return {"part": self.part, "hours": self.hours, "rows": rows} | shares


class Trials:
    """Teaches words and hears others, with the utterances of all recordings read once.

    Args:
        recognizer: a bundle that can learn own words.
        recordings: of all parts.
        part: the one that people and speech are taken from.
    """

    def __init__(self, recognizer: Recognizer, recordings: Recordings, part: str) -> None:
        self.recognizer, self.recordings, self.part = recognizer, recordings, part
        self.similarity, self.rng = recognizer.similarity, np.random.default_rng(0)
        self._beds = recordings.select("training", "noise")
        self.speech, self.times, self.hours = self._speech()
        chosen = self.rng.permutation([*recordings.select(part, "words"), *recordings.select("training", "voices")])
        self.others = [self.said(int(n)) for n in chosen[:MOST_OTHERS]]

    def said(self, index: int, noisy: bool = False) -> Said:
        """Read one recording."""
        waveform = self.recordings[index]
        padded = np.pad(waveform, PAD)
        with_noise: list[Heard] = []
        if noisy and len(self._beds):
            level_db = 20 * np.log10(np.sqrt(np.square(waveform).mean()) + 1e-9) - SNR_DB
            bed = self.recordings.crop(int(self.rng.choice(self._beds)), self.rng, len(padded))
            with_noise = self._hear(np.clip(padded + set_level(bed, level_db), -1, 1).astype(np.float32))
        return Said(self.recordings.recordings[index].word, self._hear(padded), with_noise)

    def _hear(self, waveform: Waveform) -> list[Heard]:
        config = ListenerConfig()
        found = utterances_of(waveform, config, config.max_word_s)
        return [self._read(utterance.waveform) for utterance in found if not utterance.is_long]

    def _read(self, waveform: Waveform) -> Heard:
        scores, embedding = self.recognizer.read(waveform)
        posteriors = dict(zip(self.recognizer.info.classes, scores.tolist(), strict=True))
        return Heard(self.similarity.project(embedding[None])[0], posteriors)

    def _speech(self) -> tuple[list[Heard], list[tuple[int, int, int]], float]:
        """Utterances of speech without commands, start, end and position of each (-1: too long), and hours."""
        config = ListenerConfig()
        heard, times, lengths = list[Heard](), list[tuple[int, int, int]](), list[int]()
        pieces = (self.recordings[int(n)] for n in self.recordings.select(self.part, "speech"))
        for utterance in utterances_in(counted(pieces, lengths), Segmenter(config, config.max_word_s)):
            if times and times[-1][2] < 0:  # talk, which may have gone on
                times[-1] = (times[-1][0], max(times[-1][1], utterance.talk_end), -1)
            times.append((utterance.start, utterance.end, -1 if utterance.is_long else len(heard)))
            heard += [] if utterance.is_long else [self._read(utterance.waveform)]
        return heard, times, sum(lengths) / SAMPLE_RATE_HZ / 3600

    def teach(self, taught: Iterable[Said]) -> WordModel | None:
        """Learn from the recordings that are one utterance; None if there are none."""
        vectors = [said.clean[0].vector for said in taught if len(said.clean) == 1]
        return fit(self.similarity, np.stack(vectors)) if vectors else None

    def words(self, heard: Sequence[Heard], model: WordModel | None, name: str, hidden: bool = True) -> list[str]:
        """The word that each utterance is taken for; "" if it is rejected as unsure.

        Args:
            model: of the own word `name`; None: it was not taught.
            hidden: treat `name` as outside the bundle's words.
        """
        if not heard:
            return []
        info, found = self.recognizer.info, []
        vectors = np.stack([one.vector for one in heard])
        margins = model.margins(self.similarity, vectors) if model else np.zeros(len(heard))
        for one, margin in zip(heard, margins, strict=True):
            posteriors = dict(one.posteriors)
            if hidden and name in posteriors:
                posteriors[UNKNOWN] += posteriors.pop(name)
            limits = {name: info.thresholds.get(name, info.threshold)}
            if model:
                posteriors = with_own_words(posteriors, {name: float(margin)}, limits)
            best = max(posteriors, key=posteriors.__getitem__)
            least = 0.0 if best in (UNKNOWN, SILENCE) else info.thresholds.get(best, info.threshold)
            found.append(best if posteriors[best] >= least else "")
        return found

    def is_taken(
        self, lots: Sequence[list[Heard]], model: WordModel | None, name: str, hidden: bool = True
    ) -> list[bool]:
        """Whether the word is reported in each recording."""
        found = iter(self.words([one for lot in lots for one in lot], model, name, hidden))
        return [name in [next(found) for _ in lot] for lot in lots]

    def alarms(self, model: WordModel, name: str) -> int:
        """False alarms in speech; as in `Decision`, words right after talk are rejected."""
        words, n_alarms, talk_end = self.words(self.speech, model, name), 0, -float("inf")
        for start, end, at in self.times:
            is_late = start - talk_end >= ListenerConfig.after_talk_s * SAMPLE_RATE_HZ
            n_alarms += at >= 0 and words[at] == name and is_late
            if at < 0 or (words[at] == UNKNOWN and end - start > Decision.TALK_S * SAMPLE_RATE_HZ):
                talk_end = end
        return n_alarms

    def run(self, row: Row, lots: Sequence[Sequence[Said]]) -> None:
        """Teach one word from `row.k` recordings of each speaker, hear the speakers' others, and add to the row.

        Args:
            lots: the recordings of each speaker.
        """
        drawn = [[lot[n] for n in self.rng.permutation(len(lot))] for lot in lots]
        model, name = self.teach(said for lot in drawn for said in lot[: row.k]), drawn[0][0].word
        rest = [said for lot in drawn for said in lot[row.k :]][:MOST_HEARD]
        if model is None or not rest:
            return
        missed = [not taken for taken in self.is_taken([said.clean for said in rest], model, name)]
        words = self.words([one for said in rest for one in said.clean], model, name)
        row.n_words += 1
        row.alarms += self.alarms(model, name)
        row.counts["missed"] += missed
        row.counts["missed in noise"] += [not t for t in self.is_taken([s.noisy for s in rest if s.noisy], model, name)]
        row.counts["taken for command"] += [word not in ("", name, UNKNOWN, SILENCE) for word in words]
        others = [said.clean for said in self.others if said.word != name]
        row.counts["others taken for it"] += self.is_taken(others, model, name)
        expected = expected_misses(self.similarity, model)
        if expected and len(missed) >= ENOUGH:
            row.forecasts.append((*expected, float(np.mean(missed))))

    def lots(self, part: str, source: str, fewest: int, noisy: bool = False) -> dict[str, list[list[Said]]]:
        """For each word the recordings of each speaker with at least `fewest` of them; the `MOST_WORDS` with most."""
        by_speaker: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index in self.recordings.select(part, source):
            recording = self.recordings.recordings[index]
            speaker = recording.path.name.split("_")[0] if source == "home" else recording.speaker
            by_speaker[recording.word, "" if source == "voices" else speaker].append(int(index))
        many = sorted(key for key, indices in by_speaker.items() if len(indices) >= fewest)
        if source == "voices":
            many = [key for key in many if key[0] not in self.recognizer.info.words]
        found: dict[str, list[list[Said]]] = defaultdict(list)
        drawn = [many[n] for n in self.rng.permutation(len(many))]
        for key in sorted(drawn, key=lambda key: -len(by_speaker[key]))[:MOST_WORDS]:
            chosen = self.rng.permutation(by_speaker[key])[: MOST_HEARD + ENOUGH]
            found[key[0]].append([self.said(int(index), noisy) for index in chosen])
        return dict(sorted(found.items()))


def check_lessons(trials: Trials, lots: dict[str, list[list[Said]]]) -> dict[str, list[bool]]:
    """Whether a wrong one among four recordings is noticed, and whether a good lesson is suspected."""
    counts: dict[str, list[bool]] = defaultdict(list)
    lessons = [
        (word, [said.clean[0].vector for said in lot if len(said.clean) == 1]) for word in lots for lot in lots[word]
    ]
    for word, good in lessons:
        wrong = [vector for other, vectors in lessons for vector in vectors if other != word]
        if len(good) >= 4 and wrong:
            odd = wrong[int(trials.rng.integers(len(wrong)))]
            group = largest_group(trials.similarity, np.stack([*good[:3], odd]))
            counts["lessons of four: wrong one noticed"].append(3 not in group)
            group = largest_group(trials.similarity, np.stack(good[:4]))
            counts["lessons of four: good one suspected"].append(len(group) < 4)
    return counts


def own_voice(trials: Trials, lots: dict[str, list[list[Said]]]) -> dict[str, list[bool]]:
    """Misses of words of the bundle, without and with five recordings of the same speaker."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for word in sorted(set(lots) & set(trials.recognizer.info.words)):
        for lot in lots[word]:
            rest = [said.clean for said in lot[5:]]
            for name, model in (("as shipped", None), ("taught too", trials.teach(lot[:5]))):
                taken = trials.is_taken(rest, model, word, hidden=False)
                counts[f"missed words of the bundle, {name}"] += [not one for one in taken]
    return counts


def evaluate_own(recognizer: Recognizer, recordings: Recordings, part: str) -> Own:
    """Teach words and hear them, by the same speakers and by others.

    Raises:
        DataError: too few recordings.
    """
    trials, rows = Trials(recognizer, recordings, part), []
    people, home = trials.lots(part, "words", 5), trials.lots("validation", "home", 8, noisy=True)
    voices = trials.lots("training", "voices", 10)
    for kind, lots, sizes in (
        ("one speaker", people, (3, 5)), ("one speaker at home", home, (3, 5)), ("several voices", voices, (5, 7)),
    ):  # fmt: skip
        for k in sizes:
            row = Row(kind, k)
            for lot in [lot for some in lots.values() for lot in some if len(lot) > k]:
                for _ in range(N_DRAWS):
                    trials.run(row, [lot])
            rows.append(row)
    several = Row("several speakers, each taught", 3)
    for some in [*people.values(), *home.values()]:
        if len(some) > 1:
            trials.run(several, some)
    rows = [row for row in [*rows, several] if row.n_words]
    if not rows:
        raise DataError("no word has enough recordings by one speaker to teach it")
    counts = check_lessons(trials, people) | own_voice(trials, home)
    return Own(part, trials.hours, rows, {name: Share(sum(values), len(values)) for name, values in counts.items()})


def plot_own(result: Own, target: Path) -> None:
    """Plot the share of misses that was measured against the forecast, a bar for each word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes, at = figure.subplots(), 0
    for row in result.rows:
        ordered = np.array(sorted(row.forecasts)).reshape(-1, 3)
        places = at + np.arange(len(ordered))
        axes.vlines(places, 100 * ordered[:, 0], 100 * ordered[:, 1], alpha=0.4, linewidth=3)
        axes.scatter(places, 100 * ordered[:, 2], s=12, label=f"{row.kind}, {row.k}: {row.within.value:.0%} within")
        at += len(ordered) + 2
    axes.set(xlabel="word", ylabel="missed (%)", xticks=[], title=f"Own words, {result.part}: forecast and measured")
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
