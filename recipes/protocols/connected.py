"""Sequences of commands: command error rate with the whole recording at once, and through the Listener.

Other recognisers of sequences, and ours with a language model, read the same mixtures.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.data.sounds import SPEECH_DB, Waveform, extent, set_level
from recipes.metrics import Estimate, Share, estimate
from recipes.protocols.scenes import Placed, Recordings, bed, blocks
from speech.errors import ConfigError, DataError
from speech.grammar import Grammar, NGram
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Rejection
from speech.segment import SAMPLE_RATE_HZ
from speech.settings import read_text

RATIOS_DB: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0)
SIZES = (1, 6)
"""Least and greatest number of words in a mixture."""
GAP_S = (0.1, 0.8)
"""Range of the gaps between the words of a mixture."""
GAPS_S = ((0.1, 0.35), (0.35, 0.55), (0.55, 1.0))
"""Ranges of the mean gap in the table."""
MARGIN_S = (0.02, 0.08)
"""Range of the audio kept before and after a word."""
LEAD_S, TAIL_S = (0.3, 0.6), 0.8
"""Silence before the first word, and after the last."""
SAID_EACH = 4
"""Every so many lines of a log of commands, one is said in the mixtures; the others are counted."""
WHOLE, LIVE, LOG = "whole", "live", " + log"
"""Names of the readers; LOG is added with a language model."""


@dataclass(frozen=True)
class Mixture:
    """Audio with known words."""

    waveform: Waveform
    placed: tuple[Placed, ...]

    @property
    def transcript(self) -> tuple[str, ...]:
        return tuple(p.word for p in self.placed)

    @property
    def gap_s(self) -> float:
        """Mean gap between the words; 0 for a single one."""
        gaps = [b.start_s - a.end_s for a, b in zip(self.placed, self.placed[1:], strict=False)]
        return float(np.mean(gaps)) if gaps else 0.0


class Pool:
    """Draws recorded words of one part."""

    def __init__(self, recordings: Recordings, part: str) -> None:
        self._recordings = recordings
        self._of_word: dict[str, list[int]] = defaultdict(list)
        self._of_speaker: dict[str, list[int]] = defaultdict(list)
        for i in map(int, recordings.select(part, "words")):
            self._of_word[self.word(i)].append(i)
            self._of_speaker[self._speaker(i)].append(i)

    def word(self, index: int) -> str:
        return self._recordings.recordings[index].word

    def _speaker(self, index: int) -> str:
        return self._recordings.recordings[index].speaker

    def draw(self, word: str, rng: np.random.Generator) -> int:
        """Draw a recording of a word.  Raises DataError if there is none."""
        if word not in self._of_word:
            raise DataError(f"no recording of {word!r} in this part")
        return pick(self._of_word[word], rng)

    def draw_same_speaker(self, like: int, rng: np.random.Generator) -> int:
        """Draw any word by the speaker of recording `like`."""
        return pick(self._of_speaker[self._speaker(like)], rng)

    def draw_word_like(self, word: str, like: int, rng: np.random.Generator) -> int:
        """Draw a recording of a word by the speaker of recording `like`; by any speaker if that one has none."""
        theirs = [i for i in self._of_speaker[self._speaker(like)] if self.word(i) == word]
        return pick(theirs, rng) if theirs else self.draw(word, rng)


def pick(items: list[int], rng: np.random.Generator) -> int:
    """Draw one item."""
    return items[rng.integers(len(items))]


def fixed_mixtures(recordings: Recordings, part: str, n: int, words: Sequence[str], seed: int) -> list[Mixture]:
    """Make `n` mixtures of `words` in random order; the same seed gives the same mixtures.

    Every second mixture draws from one speaker and drops other words, so it may be shorter; if none is left, it keeps
    several speakers.
    """
    rng, pool, mixtures = np.random.default_rng(seed), Pool(recordings, part), []
    for number in range(n):
        size = int(rng.integers(SIZES[0], SIZES[1] + 1))
        chosen = [pool.draw(str(rng.choice(words)), rng) for _ in range(size)]
        if number % 2:
            same = [pool.draw_same_speaker(chosen[0], rng) for _ in chosen]
            chosen = [i for i in same if pool.word(i) in words] or chosen
        mixtures.append(mix(recordings, chosen, rng))
    return mixtures


def spoken_mixtures(recordings: Recordings, part: str, sentences: Iterable[Sequence[str]], seed: int) -> list[Mixture]:
    """One mixture for each of `sentences`; every second has one speaker, except for words that this one lacks."""
    rng, pool, mixtures = np.random.default_rng(seed), Pool(recordings, part), []
    for number, words in enumerate(sentences):
        chosen = [pool.draw(word, rng) for word in words]
        if number % 2:
            chosen = [pool.draw_word_like(word, chosen[0], rng) for word in words]
        mixtures.append(mix(recordings, chosen, rng))
    return mixtures


def mix(recordings: Recordings, chosen: Sequence[int], rng: np.random.Generator) -> Mixture:
    """Recordings in a row, cut to their words; gaps, lead and tail are `GAP_S`, `LEAD_S` and `TAIL_S`."""
    cuts = [trim(recordings[index], rng) for index in chosen]
    gaps_s = rng.uniform(*GAP_S, len(cuts))
    gaps = [0, *(int(gap_s * SAMPLE_RATE_HZ) for gap_s in gaps_s[1:])]
    length = sum(len(cut) for cut, _, _ in cuts)
    spare = int(gaps_s[1:].sum() * SAMPLE_RATE_HZ) + 1 - sum(gaps)
    at = int(rng.integers(spare + 1))
    lead = int(rng.uniform(*LEAD_S) * SAMPLE_RATE_HZ)
    waveform = np.zeros(lead + length + spare + sum(gaps) + int(TAIL_S * SAMPLE_RATE_HZ), np.float32)
    placed = []
    at += lead
    for index, (cut, start, end), gap in zip(chosen, cuts, gaps, strict=True):
        at += gap
        waveform[at : at + len(cut)] = set_level(cut, SPEECH_DB)
        word = recordings.recordings[index].word
        placed.append(Placed(word, (at + start) / SAMPLE_RATE_HZ, (at + end) / SAMPLE_RATE_HZ))
        at += len(cut)
    return Mixture(waveform, tuple(placed))


def trim(clip: Waveform, rng: np.random.Generator) -> tuple[Waveform, int, int]:
    """Cut a clip to its word with faded margins of `MARGIN_S`; return it and the bounds of the word in it."""
    start, end = extent(clip)
    before, after = (int(m) for m in rng.uniform(*MARGIN_S, 2) * SAMPLE_RATE_HZ)
    begin = max(0, start - before)
    cut = clip[begin : end + after].copy()
    fade = np.linspace(0, 1, SAMPLE_RATE_HZ // 100, dtype=np.float32)[: len(cut)]
    cut[: len(fade)] *= fade
    cut[len(cut) - len(fade) :] *= fade[::-1]
    return cut, start - begin, end - begin


def noisy(mixtures: Sequence[Mixture], recordings: Recordings, part: str, snr_db: float | None) -> list[Waveform]:
    """The mixtures' audio with noise at `snr_db` below the words; the noise is the same at every ratio."""
    if snr_db is None:
        return [m.waveform for m in mixtures]
    noise = bed(recordings, part, "noise", sum(len(m.waveform) for m in mixtures), np.random.default_rng(1))
    noise *= np.float32(10 ** (-snr_db / 20))
    pieces = np.split(noise, np.cumsum([len(m.waveform) for m in mixtures])[:-1])
    return [np.clip(m.waveform + piece, -1, 1) for m, piece in zip(mixtures, pieces, strict=True)]


@dataclass(frozen=True)
class Answer:
    """What a reader found in one recording."""

    words: Sequence[str]
    decided_s: Sequence[float] = ()
    """When it decided on each, for readers of a stream."""
    rejected: Sequence[str] = ()
    """Why utterances were rejected."""


Reader = Callable[[Waveform], Answer]


@dataclass(frozen=True)
class Transcript:
    """The words of one mixture and those that a reader found."""

    said: tuple[str, ...]
    found: tuple[str, ...]
    gap_s: float = 0.0
    """Mean gap between the words of the mixture."""

    @property
    def errors(self) -> int:
        """Fewest substitutions, deletions and insertions.  Source: Levenshtein 1966, by Wagner and Fischer 1974."""
        costs = list(range(len(self.found) + 1))
        for n, word in enumerate(self.said, 1):
            diagonal, costs[0] = costs[0], n
            for m, other in enumerate(self.found, 1):
                best = min(costs[m] + 1, costs[m - 1] + 1, diagonal + (word != other))
                diagonal, costs[m] = costs[m], best
        return costs[-1]


def counts(transcripts: Sequence[Transcript]) -> NDArray[np.int64]:
    """(2, mixtures): the errors and the commands of each mixture."""
    return np.array([(t.errors, len(t.said)) for t in transcripts], np.int64).reshape(-1, 2).T


def error_rate(transcripts: Sequence[Transcript]) -> Estimate:
    """Errors over commands, with the wider of two intervals.

    The errors of a mixture are correlated, so mixtures are resampled (bootstrap).  Where few or none went wrong, that
    interval is too narrow, and Wilson's counts.
    """
    errors, said = counts(transcripts)
    found = estimate(errors.sum() / max(1, said.sum()), lambda e, n: e / n, errors, said)
    low, high = Share(int(min(errors.sum(), said.sum())), int(said.sum())).interval
    return replace(found, low=min(low, found.low), high=max(high, found.high))


def error_change(transcripts: Sequence[Transcript], before: Sequence[Transcript]) -> Estimate:
    """Error rate minus that of another reader of the same mixtures; below 0: fewer errors."""
    (errors, said), (others, _) = counts(transcripts), counts(before)
    return estimate((errors - others).sum() / said.sum(), lambda e, o, n: (e - o) / n, errors, others, said)


@dataclass(frozen=True)
class Row:
    """One reader at one signal-to-noise ratio."""

    snr_db: float | None
    """None: no noise added."""
    reader: str
    transcripts: list[Transcript]
    cpu_ms: float
    """CPU milliseconds for one second of audio, all threads of the process."""
    latencies_s: list[float] = field(default_factory=list)
    """From the end of the last command said to each decision."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Number of rejected utterances by reason."""

    @property
    def name(self) -> str:
        return "clean" if self.snr_db is None else f"{self.snr_db:.0f} dB"

    def __str__(self) -> str:
        errors, said = counts(self.transcripts).sum(1)
        line = (
            f"  {self.name:7}{self.reader:22}{error_rate(self.transcripts)}  {errors}/{said}  {self.cpu_ms:6.1f} ms CPU"
        )
        if self.latencies_s:
            median, late = 1000 * np.quantile(self.latencies_s, [0.5, 0.95])
            line += f"   latency {median:4.0f} ms, 95 % {late:4.0f} ms"
        return "   ".join([line, *(f"{reason} {n}" for reason, n in self.rejected.items())])

    def as_dict(self) -> dict[str, Any]:
        errors, said = counts(self.transcripts).sum(1).tolist()
        rate = {"error_rate": error_rate(self.transcripts).as_dict(), "errors": errors, "commands": said}
        return vars(self) | rate | {"transcripts": [vars(t) for t in self.transcripts]}


@dataclass(frozen=True)
class Connected:
    """The figures of the protocol."""

    part: str
    rows: list[Row]

    @property
    def title(self) -> str:
        return f"connected commands, {self.part}, {len(self.rows[0].transcripts)} mixtures: command error rate"

    @property
    def groups(self) -> dict[str, list[Transcript]]:
        """Clean mixtures, read as a whole, by their number of words and by the mean gap between them."""
        clean = self.rows[0].transcripts
        several = [t for t in clean if len(t.said) > 1]
        sizes = {f"{n} words": [t for t in clean if len(t.said) == n] for n in sorted({len(t.said) for t in clean})}
        gaps = {f"gaps {a:g}-{b:g} s": [t for t in several if a <= t.gap_s < b] for a, b in GAPS_S}
        return {name: some for name, some in (sizes | gaps).items() if some}

    @property
    def changes(self) -> dict[str, Estimate]:
        """What a language model changes, by ratio and reader."""
        of = {(row.name, row.reader): row.transcripts for row in self.rows}
        return {
            f"{name}, {reader}": error_change(transcripts, of[name, reader.removesuffix(LOG)])
            for (name, reader), transcripts in of.items() if reader.endswith(LOG)
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [self.title, *map(str, self.rows)]
        lines += [f"  clean, {name:22}{error_rate(some)}" for name, some in self.groups.items()]
        lines += [f"  change, {name:21}{change:+}" for name, change in self.changes.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        changes = {name: change.as_dict() for name, change in self.changes.items()}
        return {"part": self.part, "rows": [row.as_dict() for row in self.rows], "changes": changes}


def read_all(
    name: str, snr_db: float | None, reader: Reader, mixtures: Sequence[Mixture], audio: Sequence[Waveform]
) -> Row:
    """Let a reader read all mixtures."""
    begin = time.process_time()
    answers = [reader(waveform) for waveform in audio]
    cpu_s = time.process_time() - begin
    pairs = list(zip(mixtures, answers, strict=True))
    return Row(
        snr_db,
        name,
        [Transcript(mixture.transcript, tuple(answer.words), mixture.gap_s) for mixture, answer in pairs],
        1000 * cpu_s / (sum(map(len, audio)) / SAMPLE_RATE_HZ),
        [x for mixture, answer in pairs for x in latencies(mixture, answer.decided_s)],
        dict(Counter(reason for answer in answers for reason in answer.rejected).most_common()),
    )


def latencies(mixture: Mixture, decided_s: Iterable[float]) -> list[float]:
    """Seconds from the end of the last command said to each decision."""
    found = []
    for at_s in sorted(set(decided_s)):
        ended_s = [placed.end_s for placed in mixture.placed if placed.end_s <= at_s]
        found += [round(at_s - max(ended_s), 3)] if ended_s else []
    return found


def our_readers(recognizer: Recognizer, commands: Sequence[str], model: NGram | None) -> dict[str, Reader]:
    """Our recogniser on whole recordings and through the Listener; only commands are recognised."""
    these, rejections = Grammar.any_of(commands), list[Rejection]()
    listener = Listener(recognizer, commands, on_rejection=rejections.append, language_model=model)

    def whole(waveform: Waveform) -> Answer:
        return Answer([word.word for word in recognizer.transcribe(waveform, SAMPLE_RATE_HZ, these, model)])

    def live(waveform: Waveform) -> Answer:
        rejections.clear()
        found = list(listener.listen(blocks(waveform)))
        return Answer([d.word for d in found], [d.at_s for d in found], [r.reason.value for r in rejections])

    return {WHOLE + LOG * bool(model): whole, LIVE + LOG * bool(model): live}


def read_log(path: Path, words: Sequence[str]) -> tuple[NGram, list[list[str]]]:
    """A language model of most lines of a log of commands, and the lines left to say: one in `SAID_EACH`.

    Raises:
        ConfigError: the file can't be read, is too short, or has a word outside `words`.
    """
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if len(lines) < SAID_EACH:
        raise ConfigError(f"{path}: {len(lines)} lines; expected at least {SAID_EACH}, one for each past utterance")
    said = lines[::SAID_EACH]
    NGram.train(said, words)  # raises ConfigError for words that the model does not know
    return NGram.train([line for number, line in enumerate(lines) if number % SAID_EACH], words), said


def evaluate_connected(
    recognizer: Recognizer,
    recordings: Recordings,
    part: str,
    n: int,
    commands: Sequence[str],
    log: Path | None = None,
    others: Mapping[str, Reader] | None = None,
) -> Connected:
    """Measure error rates on mixtures of commands, clean and in noise.

    Args:
        n: number of mixtures.
        log: lines of past commands.  The mixtures are then utterances of the log, and a language model of its other
            lines is measured too.
        others: other recognisers to measure, by name.
    """
    readers = our_readers(recognizer, commands, None)
    if log:
        model, said = read_log(log, recognizer.info.words)
        readers |= our_readers(recognizer, commands, model)
        mixtures = spoken_mixtures(recordings, part, said[:n], seed=0)
    else:
        mixtures = fixed_mixtures(recordings, part, n, commands, seed=0)
    readers |= others or {}
    rows = []
    for snr_db in RATIOS_DB if len(recordings.select(part, "noise")) else RATIOS_DB[:1]:
        audio = noisy(mixtures, recordings, part, snr_db)
        rows += [read_all(name, snr_db, reader, mixtures, audio) for name, reader in readers.items()]
    return Connected(part, rows)


def plot_connected(result: Connected, target: Path) -> None:
    """Draw the error rate with its 95 % interval against noise, and for groups of clean mixtures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    noise, groups = figure.subplots(1, 2, sharey=True)
    for place, reader in enumerate(dict.fromkeys(row.reader for row in result.rows)):
        rows = [row for row in result.rows if row.reader == reader]
        _plot_rates(noise, [row.name for row in rows], [row.transcripts for row in rows], 0.08 * place, reader)
    noise.legend()
    _plot_rates(groups, list(result.groups), list(result.groups.values()))
    noise.set(title="Noise", xlabel="signal-to-noise ratio", ylabel="command error rate (%)", ylim=(0, None))
    groups.set(title="Clean, whole recording")
    groups.tick_params("x", rotation=30)
    figure.suptitle(result.title)
    figure.savefig(target, dpi=110)


def _plot_rates(
    axes: Any,
    names: Sequence[str],
    groups: Sequence[Sequence[Transcript]],
    shift: float = 0.0,
    label: str | None = None,
) -> None:
    rates = [error_rate(group) for group in groups]
    values = np.array([100 * rate.value for rate in rates])
    spread = [values - [100 * rate.low for rate in rates], [100 * rate.high for rate in rates] - values]
    places = np.arange(len(names)) + shift
    axes.errorbar(places, values, np.maximum(0, spread), marker="o", capsize=3, linestyle="none", label=label)
    axes.set_xticks(range(len(names)), names)
    axes.grid(alpha=0.3)
