"""Utterances for the classification head, shaped like those of the endpointer: one sound with margins around it.

Seed and epoch determine them completely.  The utterances of a batch have about the same length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from recipes.data.clips import FRAME, SAMPLE_RATE_HZ, SPEECH_DB, Numbers, Reals
from recipes.data.corpus import Corpus
from recipes.data.material import Material, NoiseDraws, NoiseMix, Sounds, SourceMix, draw_noise, joined
from recipes.data.plan import Movable, Plan, no_noise, plan_elements
from recipes.data.teacher import Teacher
from speech.bundle import SILENCE, UNKNOWN
from speech.errors import ConfigError

SHORTEST_S, LONGEST_S = 0.5, 2.0
"""Lengths of an utterance, margins included."""
LONGEST_SOUND_S = 1.8
"""Longest sound of an utterance; a longer one is cut off."""
LEFT_S, RIGHT_S = (0.05, 0.55), (0.1, 0.6)
"""Ranges of the margins before and after the sound.  Live, the pre-roll is about 0.3 s, the closing pause 0.25 s."""
CHUNK = 4096
"""Number of examples that are sorted by length before they are cut into batches."""
NEVER, ALWAYS = 0, 10 * SAMPLE_RATE_HZ
"""Samples of the recording that are kept on either side of the sound: none, or all."""


@dataclass(frozen=True)
class MixConfig(SourceMix):
    """How many examples of each kind make up one training epoch."""

    keyword: int = 1500
    """Examples of each command."""
    word: int = 500
    """Examples of each other word of the vocabulary."""
    unknown_real: int = 1500
    """Recorded words outside the vocabulary.  These and all kinds down to `pair` are labelled `_unknown_`."""
    unknown_voices: int = 3500
    """Words outside the vocabulary by neural voices."""
    unknown_synthetic: int = 1500
    """Words outside the vocabulary by other synthetic voices."""
    speech: int = 5000
    """Pieces of running speech, cut at weak places."""
    speech_synthetic: float = 0.15
    """Share of synthetic voices among these pieces, if the corpus has any."""
    speech_s: tuple[float, float] = (0.25, 1.4)
    """Range of the lengths of these pieces."""
    talk: int = 1500
    """Utterances that an endpointer cuts out of running speech; only the first 1.4 s are used."""
    pair: int = 2000
    """A word of the vocabulary next to another word or a piece of speech, in one utterance."""
    gap_s: tuple[float, float] = (0.0, 0.2)
    """Range of the pause between the two sounds of a pair."""
    noise: int = 1500
    """Noise at every level.  This and all kinds down to `digital` are labelled `_silence_`."""
    events: int = 2500
    """Barking, clocks, sneezes ..."""
    procedural: int = 1500
    """Generated sounds: noises, tones, knocks, ticks, keys."""
    digital: int = 200
    """Digital silence: all zeros."""
    repeats: int = 1
    """How often the above is drawn for one epoch; raise it where epochs are short, as on a GPU."""
    speed: float = 0.12
    """Largest relative change of speed, which also changes pitch and formants."""
    speed_rare: float = 0.2
    """The same for commands with few recordings."""
    level_db: float = 4.0
    """Largest difference of a sound's level from the nominal one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("speed", "speed_rare", "speech_synthetic"):
            if not 0 <= getattr(self, field) < 0.5:
                raise ConfigError(f"{field}={getattr(self, field)} must lie in 0..0.5")
        for field in ("speech_s", "gap_s"):
            low, high = getattr(self, field)
            if not 0 <= low <= high <= LONGEST_SOUND_S:
                raise ConfigError(f"{field}={low}, {high} must rise within 0..{LONGEST_SOUND_S}")


@dataclass(frozen=True)
class Utterances(Movable):
    """One batch of the classification head."""

    plan: Plan
    label: Tensor
    """(batch,)"""
    teacher: Tensor
    """(batch, classes) posteriors of the teachers; zeros where they have none."""
    weight: Tensor
    """(batch,) weight of each example in the loss."""
    word: Tensor
    """(batch,) index into the words of the material; -1 if no word, or more than one, is said."""
    sounding: Tensor
    """(batch,) bool, true for a sound, which may get a room and noise; the others are noise or digital silence."""
    group: Tensor
    """(batch,) index into `GROUPS` of a validation example; 0 in training."""


@dataclass(frozen=True)
class Draws:
    """Examples before they are laid out; arrays (examples,)."""

    first: Sounds
    second: Sounds
    """The second sound; recording -1 if there is none."""
    gap: Numbers
    """Samples between the two."""
    context: Numbers
    """Samples of the recording that may be kept on either side of the sound."""
    label: Numbers
    word: Numbers
    taught: NDArray[np.bool_]
    """Whether the teachers' posteriors for the first recording apply to the example."""
    sounding: NDArray[np.bool_]
    gain: Reals
    gain_second: Reals
    speed: Reals
    group: Numbers

    def __len__(self) -> int:
        return len(self.label)


def drawn(
    first: Sounds,
    label: int | Numbers,
    gain: Reals,
    *,
    second: Sounds | None = None,
    gap: Numbers | None = None,
    gain_second: Reals | None = None,
    context: int = NEVER,
    word: Numbers | None = None,
    taught: bool = False,
    sounding: bool = True,
    speed: Reals | None = None,
    group: int = 0,
) -> Draws:
    """Make `Draws`, with defaults that suit most examples."""
    n = len(first)
    nothing = Sounds(np.full(n, -1), np.zeros(n, np.int64), np.zeros(n, np.int64))
    return Draws(
        first=first,
        second=second or nothing,
        gap=np.zeros(n, np.int64) if gap is None else gap,
        context=np.full(n, context, np.int64),
        label=np.broadcast_to(np.asarray(label, np.int64), n),
        word=np.full(n, -1, np.int64) if word is None else word,
        taught=np.full(n, taught),
        sounding=np.full(n, sounding),
        gain=gain,
        gain_second=np.zeros(n) if gain_second is None else gain_second,
        speed=np.ones(n) if speed is None else speed,
        group=np.full(n, group, np.int64),
    )


def together(lots: Sequence[Draws]) -> Draws:
    """Concatenate several lots of examples."""
    lots = [lot for lot in lots if len(lot)] or list(lots[:1])
    return Draws(
        joined([lot.first for lot in lots]),
        joined([lot.second for lot in lots]),
        *(
            np.concatenate([getattr(lot, name) for lot in lots])
            for name in (
                "gap", "context", "label", "word", "taught", "sounding", "gain", "gain_second", "speed", "group",
            )
        ),
    )  # fmt: skip


class EpochDraws:
    """Draws the examples of one epoch, kind by kind."""

    def __init__(self, material: Material, labels: Sequence[str], mix: MixConfig, rng: np.random.Generator) -> None:
        self.material, self.labels, self.mix, self.rng = material, list(labels), mix, rng
        self.unknown, self.silence = self.labels.index(UNKNOWN), self.labels.index(SILENCE)

    def draw(self) -> Draws:
        """Draw all examples of the epoch."""
        lots = [self._vocabulary(), self._outside(), *self._speech(), self._pairs(), *self._silence()]
        return together(lots)

    def _sounding(self, sounds: Sounds, label: int | Numbers, limit: float | Reals, **more: object) -> Draws:
        """Sounds at about the nominal level, their speed varied by up to `limit`."""
        speed = 1 + limit * self.rng.uniform(-1, 1, len(sounds))
        return drawn(sounds, label, self._gain(sounds), speed=speed, **more)  # type: ignore[arg-type]

    def _gain(self, sounds: Sounds) -> Reals:
        level_db = SPEECH_DB + self.mix.level_db * self.rng.uniform(-1, 1, len(sounds))
        return self.material.gain(sounds, level_db)

    def _vocabulary(self) -> Draws:
        """The commands and the other words with a class of their own."""
        material, mix, rng = self.material, self.mix, self.rng
        lots = [self._nothing()]
        for label, name in enumerate(self.labels):
            word, count = material.number(name), mix.keyword if name in material.commands else mix.word
            if name in (UNKNOWN, SILENCE) or word < 0:
                continue
            limit = mix.speed_rare if name in material.commands and material.is_rare(name) else mix.speed
            for source, n in enumerate(rng.multinomial(count, material.shares[word])):
                recordings = material.draw_evenly(word, source, int(n), rng)
                lots.append(self._words(recordings, label, limit))
        return together(lots)

    def _words(self, recordings: Numbers, label: int, limit: float) -> Draws:
        material = self.material
        return self._sounding(
            material.whole(recordings), label, limit, context=ALWAYS, word=material.word[recordings], taught=True
        )

    def _outside(self) -> Draws:
        """Words outside the vocabulary; within a source, each word is about equally frequent."""
        material, mix, rng = self.material, self.mix, self.rng
        known = np.isin(material.words, self.labels)
        lots = [self._nothing()]
        for source, count in enumerate((mix.unknown_real, mix.unknown_voices, mix.unknown_synthetic)):
            words = np.flatnonzero((material.counts[source] > 0) & ~known)
            if len(words):
                for word, n in zip(*np.unique(rng.choice(words, count), return_counts=True), strict=True):
                    recordings = material.draw_evenly(int(word), source, int(n), rng)
                    lots.append(self._words(recordings, self.unknown, mix.speed))
        return together(lots)

    def _nothing(self) -> Draws:
        return drawn(joined([]), self.unknown, np.zeros(0))

    def _speech(self) -> list[Draws]:
        """Pieces of running speech, cut at weak places or by the endpointer."""
        material, mix, rng = self.material, self.mix, self.rng
        if not material.has("speech"):
            return []
        n_synthetic = int(rng.binomial(mix.speech, mix.speech_synthetic)) if material.has("sentences") else 0
        cut = [material.cut_speech("speech", mix.speech - n_synthetic, *mix.speech_s, rng)]
        if n_synthetic:
            cut.append(material.cut_speech("sentences", n_synthetic, *mix.speech_s, rng))
        if not material.has_pieces("speech"):
            return [self._sounding(joined(cut), self.unknown, mix.speed)]
        whole = material.draw_pieces("speech", mix.talk, rng)
        whole = Sounds(whole.recording, whole.start, np.minimum(whole.end, whole.start + round(1.4 * SAMPLE_RATE_HZ)))
        return [
            self._sounding(joined(cut), self.unknown, mix.speed),
            self._sounding(whole, self.unknown, mix.speed, context=round(0.1 * SAMPLE_RATE_HZ)),
        ]

    def _pairs(self) -> Draws:
        """A word of the vocabulary before or after another word or a piece of speech."""
        material, mix, rng = self.material, self.mix, self.rng
        known = [material.number(name) for name in self.labels if material.number(name) >= 0]
        if not mix.pair or not known:
            return self._nothing()
        word = material.whole(material.draw_words(rng.choice(known, mix.pair), rng))
        other = material.whole(material.draw_words(rng.integers(len(material.words), size=mix.pair), rng))
        if material.has("speech"):
            piece = material.cut_speech("speech", mix.pair, 0.25, 0.7, rng)
            other = choose(rng.random(mix.pair) < 0.5, piece, other)
        swap = rng.random(mix.pair) < 0.5
        first, second = choose(swap, other, word), choose(swap, word, other)
        gap = (rng.uniform(*mix.gap_s, mix.pair) * SAMPLE_RATE_HZ).astype(np.int64)
        return self._sounding(
            first, self.unknown, mix.speed, second=second, gap=gap, gain_second=self._gain(second),
            context=round(0.02 * SAMPLE_RATE_HZ),
        )  # fmt: skip

    def _silence(self) -> list[Draws]:
        """Noise at every level, short sounds at the level of speech, and digital silence."""
        material, mix, rng = self.material, self.mix, self.rng
        lots = []
        for source, count in (("events", mix.events), ("procedural", mix.procedural)):
            if material.has_pieces(source) and count:
                sounds = material.crop_pieces(material.draw_pieces(source, count, rng), 0.2, 1.4, rng)
                lots.append(self._sounding(sounds, self.silence, mix.speed, context=round(0.1 * SAMPLE_RATE_HZ)))
        if mix.noise and (material.has("noise") or material.has("procedural")):
            source = "noise" if material.has("noise") else "procedural"
            length = (rng.uniform(SHORTEST_S, LONGEST_S, mix.noise) * SAMPLE_RATE_HZ).astype(np.int64)
            noise = material.stretches(source, length, rng)
            gain = material.gain(noise, rng.uniform(-90, -3, len(noise)))
            lots.append(drawn(noise, self.silence, gain, sounding=False))
        length = (rng.uniform(SHORTEST_S, LONGEST_S, mix.digital) * SAMPLE_RATE_HZ).astype(np.int64)
        nothing = Sounds(np.zeros_like(length), np.zeros_like(length), length)
        lots.append(drawn(nothing, self.silence, np.zeros(len(length)), sounding=False))
        return lots


def choose(condition: NDArray[np.bool_], yes: Sounds, no: Sounds) -> Sounds:
    """Element by element: the sound of `yes` where `condition` is true, else that of `no`."""
    return Sounds(
        np.where(condition, yes.recording, no.recording),
        np.where(condition, yes.start, no.start),
        np.where(condition, yes.end, no.end),
    )


@dataclass(frozen=True)
class Layout:
    """Lengths of the sounds and margins of examples; arrays (examples,), in samples of the utterance."""

    n_first: Numbers
    """Length of the first sound, after its change of speed."""
    n_second: Numbers
    """The same for the second sound, with the gap before it; 0 if there is none."""
    left: Numbers
    """Margin before the sounds."""
    right: Numbers
    """Margin after the sounds."""

    @property
    def wanted(self) -> Numbers:
        """Length of each utterance before it is padded to the length of its batch."""
        return self.left + self.n_first + self.n_second + self.right


def lay_out(draws: Draws, left_s: Reals, right_s: Reals) -> Layout:
    """Lay out the sounds of utterances: cut long sounds, then shrink margins so that all fits into `LONGEST_S`.

    Utterances under `SHORTEST_S` are lengthened.  Noise and silence get no other margins.

    Args:
        draws: the examples.
        left_s, right_s: (examples,) wanted margins.
    """
    most = round(LONGEST_SOUND_S * SAMPLE_RATE_HZ)
    n_first = np.ceil((draws.first.end - draws.first.start) / draws.speed).astype(np.int64)
    n_first = np.where(draws.sounding, np.minimum(n_first, most), n_first)
    n_second = np.ceil((draws.second.end - draws.second.start) / draws.speed).astype(np.int64)
    n_second = np.minimum(n_second + np.where(n_second > 0, draws.gap, 0), most - np.minimum(n_first, most))
    sound = n_first + n_second
    left, right = left_s * draws.sounding, right_s * draws.sounding
    room = np.maximum(LONGEST_S - sound / SAMPLE_RATE_HZ, 0)
    shrink = np.minimum(1, room / np.maximum(left + right, 1e-9))
    left, right = (np.floor(m * shrink * SAMPLE_RATE_HZ).astype(np.int64) for m in (left, right))
    missing = np.maximum(round(SHORTEST_S * SAMPLE_RATE_HZ) - left - right - sound, 0)
    return Layout(n_first, n_second, left + missing // 2, right + missing - missing // 2)


def bucket(wanted: Numbers, batch_size: int, world: int, rng: np.random.Generator) -> list[Numbers]:
    """Group examples of about equal length into batches of indices, (world * batch_size,) each, in random order.

    Examples that do not fill a batch are left out.
    """
    size = batch_size * world
    order = rng.permutation(len(wanted))
    batches: list[Numbers] = []
    step = max(1, CHUNK // size) * size
    for begin in range(0, len(order), step):
        chunk = order[begin : begin + step]
        chunk = chunk[np.argsort(wanted[chunk], kind="stable")]
        n = len(chunk) // size
        spare = len(chunk) - n * size
        skipped = int(rng.integers(spare + 1))  # not always the shortest or the longest
        kept = chunk[skipped : skipped + n * size]
        batches += [kept[i * size : (i + 1) * size] for i in range(n)]
    return [batches[i] for i in rng.permutation(len(batches))]


def make_plan(
    corpus: Corpus, draws: Draws, layout: Layout, rows: Numbers, shift: Reals, noise: NoiseDraws | None
) -> Plan:
    """Plan one batch; its length is that of its longest example, rounded up to 10 ms.

    Args:
        rows: indices of the examples.
        shift: (rows,) in 0..1, share of an utterance's padding that goes before its sound.
        noise: of all examples; None for none.
    """
    length = int(-(-layout.wanted[rows].max() // FRAME) * FRAME)
    left = layout.left[rows] + np.floor(shift * (length - layout.wanted[rows])).astype(np.int64)
    first, second, speed = draws.first.at(rows), draws.second.at(rows), draws.speed[rows]
    n_first, n_second, context = layout.n_first[rows], layout.n_second[rows], draws.context[rows]
    right = length - left - n_first
    number = np.arange(len(rows))
    before = np.minimum(np.minimum(first.start, context), np.floor(left * speed).astype(np.int64))
    after = np.minimum(context, np.floor(right * speed).astype(np.int64))
    cut_end = np.minimum(first.end, first.start + np.ceil(n_first * speed).astype(np.int64))
    gap = np.where(n_second > 0, draws.gap[rows], 0)
    has_second = second.recording >= 0
    place_second = left + n_first + gap
    end_second = np.minimum(second.end, second.start + np.ceil((n_second - gap) * speed).astype(np.int64))
    elements = plan_elements(
        corpus,
        row=np.concatenate([number, number[has_second]]),
        place=np.concatenate([left - np.floor(before / speed).astype(np.int64), place_second[has_second]]),
        recording=np.concatenate([first.recording, second.recording[has_second]]),
        start=np.concatenate([first.start - before, second.start[has_second]]),
        end=np.concatenate([cut_end + after, end_second[has_second]]),
        speed=np.concatenate([speed, speed[has_second]]),
        gain=np.concatenate([draws.gain[rows], draws.gain_second[rows][has_second]]),
    )
    return Plan(len(rows), length, elements, no_noise() if noise is None else noise.of(rows, corpus, length))


class UtteranceBatches(Dataset[Utterances]):
    """The batches of one epoch, determined by `seed` and `epoch`.

    Args:
        material: the training part.
        labels: classes.
        mix, noise: composition of the epoch and of its noise.
        teacher: posteriors for single words; None for none.
        batch_size: examples per process in one step.
        share: index of this process and number of processes; each gets its own rows of every batch.
    """

    def __init__(
        self,
        material: Material,
        labels: Sequence[str],
        mix: MixConfig,
        noise: NoiseMix,
        teacher: Teacher,
        batch_size: int,
        seed: int,
        epoch: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        rng = np.random.default_rng([seed, epoch])
        self.material, self.teacher = material, teacher
        self.draws = together([EpochDraws(material, labels, mix, rng).draw() for _ in range(mix.repeats)])
        n = len(self.draws)
        self.layout = lay_out(self.draws, rng.uniform(*LEFT_S, n), rng.uniform(*RIGHT_S, n))
        self.noise = draw_noise(material, noise, n, rng)
        self.shift = rng.random(n)
        rank, world = share
        size = min(batch_size, max(1, n // world))
        self.batches = [rows[rank::world] for rows in bucket(self.layout.wanted, size, world, rng)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Utterances:
        rows = self.batches[position]
        plan = make_plan(self.material.corpus, self.draws, self.layout, rows, self.shift[rows], self.noise)
        return as_batch(plan, self.draws, rows, self.teacher)


def as_batch(plan: Plan, draws: Draws, rows: Numbers, teacher: Teacher) -> Utterances:
    """Combine a plan with the targets of its rows."""
    recordings = np.where(draws.taught[rows], draws.first.recording[rows], -1)
    posteriors, weight = teacher.of(recordings)
    return Utterances(
        plan=plan,
        label=torch.from_numpy(draws.label[rows]),
        teacher=torch.from_numpy(posteriors),
        weight=torch.from_numpy(weight),
        word=torch.from_numpy(draws.word[rows]),
        sounding=torch.from_numpy(draws.sounding[rows]),
        group=torch.from_numpy(draws.group[rows]),
    )


GROUPS = ("official", "home", "speech", "events", "noise")
"""Kinds of validation examples."""


class ValidationUtterances(Dataset[Utterances]):
    """A fixed set of validation examples without augmentation.

    It holds every word of the part, from Speech Commands and `home`, with margins of 0.3 s, and `per_kind` pieces each
    of speech, of events and of noise at -70 to -5 dB.
    """

    def __init__(self, corpus: Corpus, labels: Sequence[str], part: str, per_kind: int, batch_size: int) -> None:
        rng = np.random.default_rng(0)
        self.material, self.labels = Material(corpus, part, SourceMix(), ()), list(labels)
        self.draws = self._draw(part, per_kind, rng)
        self.teacher = Teacher(len(labels))
        n = len(self.draws)
        self.layout = lay_out(self.draws, np.full(n, 0.3), np.full(n, 0.3))
        order = np.argsort(self.layout.wanted, kind="stable")
        self.batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]

    def _draw(self, part: str, per_kind: int, rng: np.random.Generator) -> Draws:
        material, corpus = self.material, self.material.corpus
        unknown, silence = self.labels.index(UNKNOWN), self.labels.index(SILENCE)
        lots = []
        for group, source in enumerate(("words", "home")):
            chosen = corpus.select(part, source)
            names = [corpus.recordings[i].word for i in chosen]
            label = np.array([self.labels.index(w) if w in self.labels else unknown for w in names], np.int64)
            lots.append(drawn(material.whole(chosen), label, np.ones(len(chosen)), context=ALWAYS, group=group))
        even = np.ones(per_kind)
        if material.has("speech"):
            sounds = material.cut_speech("speech", per_kind, 0.25, 1.4, rng)
            lots.append(drawn(sounds, unknown, even, group=GROUPS.index("speech")))
        if material.has_pieces("events"):
            sounds = material.crop_pieces(material.draw_pieces("events", per_kind, rng), 0.2, 1.4, rng)
            lots.append(drawn(sounds, silence, even, group=GROUPS.index("events")))
        if material.has("noise"):
            sounds = material.stretches("noise", np.full(per_kind, SAMPLE_RATE_HZ), rng)
            gain = material.gain(sounds, rng.uniform(-70, -5, per_kind))
            lots.append(drawn(sounds, silence, gain, sounding=False, group=GROUPS.index("noise")))
        return together(lots)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Utterances:
        rows = self.batches[position]
        plan = make_plan(self.material.corpus, self.draws, self.layout, rows, np.full(len(rows), 0.5), None)
        return as_batch(plan, self.draws, rows, self.teacher)
