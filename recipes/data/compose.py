"""Examples composed from the store: sums of sounds as mel power, shaped as the live endpointer cuts utterances.

Examples are drawn with numpy from one generator, as elements; `recipes.data.elements.render` then adds them up for a
whole batch, on the device of the store.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.data.elements import ELEMENT, NONE, Elements, Plan, laid, played
from recipes.data.recordings import MADE, RARE, SPOKEN
from recipes.data.store import QUIET, TAIL, Numbers, Store
from speech.bundle import SILENCE, UNKNOWN

SHARES = {
    "command": 0.46, "word": 0.12, "other": 0.04, "made": 0.09, "speech": 0.09, "talk": 0.03, "pair": 0.05,
    "noise": 0.04, "event": 0.045, "procedural": 0.03, "digital": 0.005,
}  # fmt: skip
"""Kinds of single utterances and how often each is drawn: commands; other words with a class; words without one, by
people and by synthesisers; pieces of running speech, cut anywhere and by the endpointer; a word next to another or to
speech (these from `other` on are `_unknown_`); noise at every level, everyday and generated sounds, digital silence
(`_silence_`)."""
MADE_SHARE, MADE_SHARE_RARE = 0.1, 0.35
"""Share of synthetic voices among the recordings of a word, and of a word with few recordings."""
ROOMY = 0.4
"""Share of sounds that are drawn in a room."""
SHORTEST, LONGEST = 55, 170
"""Frames of an utterance."""
LONGEST_SOUND = 140
"""Frames of its sound."""
LEFT, RIGHT = (5, 45), (8, 42)
"""Ranges of the margins in frames.  Live, the pre-roll is about 30 frames, the closing pause 25."""
PIECE = (25, 120)
"""Range of the frames of a piece of running speech."""
NEAR = 12
"""Speech is cut at the weakest of this many frames."""
TEMPO, VTL = 0.15, 0.07
"""Largest relative change of tempo; standard deviation of the logarithm of the vocal tract's length."""
LEVEL_DB = 4.0
"""Largest difference between the levels of two sounds of an example, in either direction."""
NOISE_DB = (-64.0, 23.0)
"""Range of the level of an example that is only noise, relative to the nominal one."""
POOL = 8
"""Batches whose examples are sorted by length together."""
NOISES = {"babble": 0.12, "event": 0.12, "procedural": 0.1, "noise": 0.66}
"""Kinds of noise behind an example, and how often each is drawn; babble is two to four voices."""
SEQUENCE_S = (1.2, 2.0, 3.5, 6.0)
"""Lengths of sequences; those of a batch are equally long."""
SLOTS = 8
"""Most elements of a sequence."""
SEQUENCE = {"command": 0.52, "word": 0.17, "other": 0.13, "speech": 0.13, "event": 0.05}
"""Kinds of elements of a sequence, and how often each is drawn."""
REPEAT, EMPTY, RUNNING = 0.1, 0.06, 0.22
"""Share of elements that repeat the last word; of sequences with noise only; with running speech and no command."""
GAPS = ((-5, 0), (0, 15), (15, 60), (60, 150))
GAP_SHARES = (0.1, 0.3, 0.4, 0.2)
"""Ranges of the pause between two elements in frames and the probability of each; one in ten pairs overlaps."""

GROUPS = ("official", "home", "speech", "events", "noise")
"""Kinds of validation examples."""
MARGIN = 30
"""Frames before and after the sound of a validation example."""


class Composer:
    """Draws examples from one part of a store.

    Args:
        store: the sounds.
        part: training or validation.
        labels: the classes or tokens.
        commands: the main words of the vocabulary.
        strength: of the changes of tempo and vocal tract, 0..1.
    """

    def __init__(
        self, store: Store, part: str, labels: Sequence[str], commands: Sequence[str], strength: float = 1.0
    ) -> None:
        self.store, self.labels, self.strength = store, list(labels), strength
        self.sound = store.sounds
        sources = {name: store.select(part, name) for name in (*SPOKEN, "speech", "sentences", "noise", "events")}
        sources["procedural"] = store.select(part, "procedural")
        self.pools = {
            "speech": np.concatenate([sources["speech"], sources["sentences"]]),
            "event": sources["events"],
            "noise": sources["noise"],
            "procedural": sources["procedural"],
            "words": sources["words"],
            "home": store.select(part, "home"),
        }
        self.pools["babble"] = self.pools["speech"]
        names = sorted({r.word for r in store.recordings if r.part == part and r.source in SPOKEN})
        self.words: tuple[str, ...] = tuple(names)
        """All words that are said, with a class or without."""
        number = {word: n for n, word in enumerate(names)}
        self.word_of = store.of_sounds(lambda r: number.get(r.word, -1) if r.source in SPOKEN else -1)
        people = sources["words"]
        made = np.concatenate([sources[name] for name in MADE])
        self.people = [people[self.word_of[people] == n] for n in range(len(names))]
        self.made = [made[self.word_of[made] == n] for n in range(len(names))]
        self.label_of = np.array([self.labels.index(w if w in self.labels else UNKNOWN) for w in names], np.int64)
        """(words,) the class of each word."""
        known = self.label_of != self.labels.index(UNKNOWN)
        is_command = np.isin(names, commands)
        self.choices = {
            "command": np.flatnonzero(is_command),
            "word": np.flatnonzero(known & ~is_command),
            "other": np.flatnonzero(~known & np.array([len(p) > 0 for p in self.people], bool)),
            "made": np.flatnonzero(~known & np.array([len(m) > 0 for m in self.made], bool)),
        }

    def _has(self, kind: str) -> bool:
        if kind in ("digital", "pair"):
            return kind == "digital" or len(self.choices["command"]) > 0
        kind = "speech" if kind == "talk" else kind
        return len(self.choices[kind] if kind in self.choices else self.pools[kind]) > 0

    def _kinds(self, shares: dict[str, float], n: int, rng: np.random.Generator) -> NDArray[np.str_]:
        """Draw kinds of which there are sounds."""
        there = {kind: share for kind, share in shares.items() if self._has(kind)}
        return rng.choice(list(there), n, p=np.array(list(there.values())) / sum(there.values()))

    # ---- sounds ----
    def _recordings(self, words: Numbers, rng: np.random.Generator) -> Numbers:
        """A sound of each word: by a person, or by a synthesiser."""
        found = np.zeros(len(words), np.int64)
        for n, word in enumerate(words):
            people, made = self.people[word], self.made[word]
            share = MADE_SHARE if len(people) >= RARE else MADE_SHARE_RARE
            pool = made if len(made) and (not len(people) or rng.random() < share) else people
            found[n] = pool[rng.integers(len(pool))]
        return found

    def _stretch(self, sounds: Numbers, low: float, high: float, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
        """A random stretch of `low` to `high` frames within each sound: start and end within its recording."""
        start, end = self.sound["start"][sounds], self.sound["end"][sounds]
        wanted = np.minimum(rng.uniform(low, high, len(sounds)).astype(np.int64), end - start)
        start = start + (rng.random(len(sounds)) * (end - start - wanted + 1)).astype(np.int64)
        return start, start + wanted

    def _piece(self, n: int, high: float, rng: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
        """Pieces of running speech, cut at the weakest frame near each end: sounds, starts, ends."""
        pool = self.pools["speech"]
        lengths = self.sound["end"][pool] - self.sound["start"][pool]
        sounds = rng.choice(pool, n, p=lengths / lengths.sum())
        start, end = self._stretch(sounds, PIECE[0] + NEAR, high + NEAR, rng)
        begin = self.sound["begin"][sounds]
        start = start + self._weakest(begin + start)
        return sounds, start, np.maximum(end - NEAR + self._weakest(begin + end - NEAR), start + 1)

    def _weakest(self, frame: Numbers) -> Numbers:
        """Offset of the weakest of the `NEAR` frames from each frame of the store on."""
        near = torch.from_numpy(np.minimum(frame[:, None] + np.arange(NEAR), len(self.store.frames) - 1))
        power = self.store.frames[near.to(self.store.frames.device)].float().exp().sum(2)
        return power.argmin(1).cpu().numpy()

    def _tract(self, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
        return np.exp(VTL * self.strength * rng.standard_normal(n).clip(-2.5, 2.5)).astype(np.float32)

    def _tempo(self, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
        return (1 + TEMPO * self.strength * rng.uniform(-1, 1, n)).astype(np.float32)

    def _cut(
        self, sounds: Numbers, start: Numbers, end: Numbers, rng: np.random.Generator, context: bool | NDArray[np.bool_]
    ) -> Elements:
        """Elements of these stretches, some in a room; with `context`, all of the recording around them."""
        found = np.zeros(len(sounds), ELEMENT)
        of = self.sound[sounds]
        room = np.where((rng.random(len(sounds)) < ROOMY) & (of["rooms"] > 0), rng.integers(1, 4, len(sounds)), 0)
        room = np.minimum(room, of["rooms"])
        wet = room > 0
        first = of["begin"] + wet * of["length"] + (room - wet) * (of["length"] + TAIL)
        before = np.where(context, start, 0)
        stop = np.where(context, of["length"] + wet * TAIL, end + wet * np.minimum(TAIL, of["length"] + TAIL - end))
        found["begin"], found["length"] = first + start - before, stop - start + before
        found["fill"], found["n_fill"] = first + of["quiet"], np.where(of["quiet"] >= 0, QUIET, 0)
        found["tempo"], found["tract"] = self._tempo(len(sounds), rng), self._tract(len(sounds), rng)
        found["gain_db"] = LEVEL_DB * rng.uniform(-1, 1, len(sounds))
        found["lead"] = (before / found["tempo"]).astype(np.int64)  # for now: frames before the sound itself
        found["trail"] = played(end - start + before, found["tempo"]) - found["lead"]  # and frames of the sound
        return found

    # ---- single utterances ----
    def utterances(self, batch_size: int, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield batches of about equally long utterances without end."""
        while True:
            first, second, label, word, sounding = self._draw(POOL * batch_size, rng)
            n = len(first)
            sound = np.minimum(first["trail"], LONGEST_SOUND)
            gap = rng.integers(0, 20, n)
            more = np.where(second["length"] > 0, gap + second["trail"], 0)
            margins = np.stack([rng.integers(*LEFT, n), rng.integers(*RIGHT, n)])
            total = sound + more + margins.sum(0)
            wanted = np.where(sounding, np.clip(total, SHORTEST, LONGEST), rng.integers(SHORTEST, 2 * SHORTEST, n))
            left = np.minimum(margins[0], np.maximum(wanted - sound - more, 0))
            order = np.argsort(wanted, kind="stable").reshape(POOL, batch_size)
            for rows in order[rng.permutation(POOL)]:
                n_frames = int(wanted[rows].max())
                shift = (rng.random(batch_size) * (n_frames - wanted[rows] + 1)).astype(np.int64)
                place = np.where(sounding[rows], left[rows] + shift, 0)
                lots = [laid(first[rows], place, n_frames, fill=True)]
                after = place + sound[rows] + gap[rows]
                pairs = second[rows]["length"] > 0
                lots.append(laid(second[rows], after, n_frames, fill=False)[pairs])
                noises = self.noises(batch_size, n_frames, rng)
                targets = (torch.from_numpy(values[rows]) for values in (label, word, sounding))
                yield Plan(np.concatenate(lots), noises, batch_size, n_frames, *targets)

    def _draw(self, n: int, rng: np.random.Generator) -> tuple[Elements, Elements, Numbers, Numbers, NDArray[np.bool_]]:
        """Draw n utterances: first and second elements (those of length 0 are missing), class, word, sounding."""
        kinds = self._kinds(SHARES, n, rng)
        first, second = np.zeros(n, ELEMENT), np.zeros(n, ELEMENT)
        first["tempo"] = second["tempo"] = first["tract"] = second["tract"] = 1
        label = np.full(n, self.labels.index(UNKNOWN))
        word = np.full(n, -1)
        for kind in ("command", "word", "other", "made"):
            rows = np.flatnonzero(kinds == kind)
            if len(rows):
                sounds = self._recordings(rng.choice(self.choices[kind], len(rows)), rng)
                first[rows], word[rows] = self._whole(sounds, rng, True), self.word_of[sounds]
                label[rows] = self.label_of[word[rows]]
        for kind in ("speech", "talk"):
            rows = np.flatnonzero(kinds == kind)
            if len(rows):
                sounds, start, end = self._piece(len(rows), PIECE[1], rng)
                if kind == "talk":
                    sounds = rng.choice(self.pools["speech"], len(rows))
                    start, end = self.sound["start"][sounds], self.sound["end"][sounds]
                    end = np.minimum(end, start + PIECE[1])
                first[rows] = self._cut(sounds, start, end, rng, False)
        self._pairs(np.flatnonzero(kinds == "pair"), first, second, rng)
        quiet = np.isin(kinds, ["noise", "event", "procedural", "digital"])
        label[quiet] = self.labels.index(SILENCE) if SILENCE in self.labels else self.labels.index(UNKNOWN)
        for kind in ("event", "procedural"):
            rows = np.flatnonzero(kinds == kind)
            if len(rows):
                sounds = rng.choice(self.pools[kind], len(rows))
                first[rows] = self._cut(sounds, *self._stretch(sounds, 20, PIECE[1], rng), rng, False)
        rows = np.flatnonzero(kinds == "noise")
        if len(rows):
            first[rows] = self._stretches("noise", len(rows), LONGEST, rng)
            first["gain_db"][rows] = rng.uniform(*NOISE_DB, len(rows))
        return first, second, label, word, ~np.isin(kinds, ["noise", "digital"])

    def _whole(self, sounds: Numbers, rng: np.random.Generator, context: bool) -> Elements:
        return self._cut(sounds, self.sound["start"][sounds], self.sound["end"][sounds], rng, context)

    def _pairs(self, rows: Numbers, first: Elements, second: Elements, rng: np.random.Generator) -> None:
        """A word of the vocabulary before or after another word or a piece of speech."""
        n = len(rows)
        if not n:
            return
        known = np.concatenate([self.choices["command"], self.choices["word"]])
        word = self._whole(self._recordings(rng.choice(known, n), rng), rng, False)
        other = self._whole(self._recordings(rng.integers(len(self.words), size=n), rng), rng, False)
        if self._has("speech"):
            other = np.where(rng.random(n) < 0.5, self._cut(*self._piece(n, 70, rng), rng, False), other)
        swap = rng.random(n) < 0.5
        first[rows], second[rows] = np.where(swap, other, word), np.where(swap, word, other)

    def fixed(self, per_kind: int, batch_size: int) -> list[tuple[Plan, Tensor]]:
        """Fixed validation batches without augmentation, each with the group (batch,) of its examples in `GROUPS`.

        They hold every word of the part, also those of `home`, with margins of `MARGIN` frames, and `per_kind` pieces
        each of speech, of events and of noise at every level.
        """
        rng = np.random.default_rng(0)
        silence, unknown = self.labels.index(SILENCE), self.labels.index(UNKNOWN)
        lots = []
        for group in ("words", "home"):
            sounds = self.pools[group]
            names = [self.store.recordings[i].word for i in self.sound["recording"][sounds]]
            classes = [self.labels.index(w) if w in self.labels else unknown for w in names]
            lots.append((self._whole(sounds, rng, True), np.array(classes, np.int64), True))
        for group, target in (("speech", unknown), ("event", silence), ("noise", silence)):
            n = per_kind if self._has(group) else 0
            if not n:
                some = NONE
            elif group == "speech":
                some = self._cut(*self._piece(n, PIECE[1], rng), rng, False)
            elif group == "event":
                sounds = rng.choice(self.pools[group], n)
                some = self._cut(sounds, *self._stretch(sounds, 20, PIECE[1], rng), rng, False)
            else:
                some = self._stretches(group, n, 100, rng)
                some["gain_db"] = rng.uniform(*NOISE_DB, n)
            lots.append((some, np.full(n, target), group != "noise"))
        elements, label = (np.concatenate([lot[i] for lot in lots]) for i in (0, 1))
        sounding = np.repeat([lot[2] for lot in lots], [len(lot[0]) for lot in lots])
        groups = np.repeat(np.arange(len(lots)), [len(lot[0]) for lot in lots])
        wanted = np.where(sounding, np.minimum(elements["trail"], LONGEST_SOUND) + 2 * MARGIN, 100)
        order = np.argsort(wanted, kind="stable")
        found = []
        for rows in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            n_frames = int(wanted[rows].max())
            place = np.where(sounding[rows], MARGIN + (n_frames - wanted[rows]) // 2, 0)
            targets = (torch.from_numpy(values[rows]) for values in (label, label, sounding))
            plan = Plan(laid(elements[rows], place, n_frames, True), NONE, len(rows), n_frames, *targets)
            found.append((plan, torch.from_numpy(groups[rows])))
        return found

    # ---- noise ----
    def _stretches(self, kind: str, n: int, n_frames: int, rng: np.random.Generator) -> Elements:
        """`n_frames` of random sounds of a kind from a random frame on; a shorter one is repeated."""
        found = np.zeros(n, ELEMENT)
        of = self.sound[rng.choice(self.pools[kind], n)]
        size = of["end"] - of["start"]
        spare = np.maximum(size - n_frames, 0)
        found["begin"] = of["begin"] + of["start"] + (rng.random(n) * (spare + 1)).astype(np.int64)
        found["length"] = np.minimum(size, n_frames)
        found["fill"], found["n_fill"] = found["begin"], found["length"]
        found["trail"] = n_frames - found["length"]
        found["tempo"] = found["tract"] = 1
        return found

    def noises(self, n: int, n_frames: int, rng: np.random.Generator) -> Elements:
        """The noise behind n examples, at about the nominal level."""
        if not any(self._has(kind) for kind in NOISES):
            return NONE
        kinds = self._kinds(NOISES, n, rng)
        lots = []
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            for voice in range(4 if kind == "babble" else 1):
                some = self._stretches(str(kind), len(rows), n_frames, rng)
                some["row"] = rows
                lots.append(some[(voice < 2) | (rng.random(len(rows)) < 0.5)])
        return np.concatenate(lots)

    # ---- sequences ----
    def sequences(self, batch_frames: int, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield batches of sequences of `batch_frames` frames together, without end; the labels are tokens.

        The transcript has `_unknown_` once for each run of other speech.
        """
        while True:
            n_frames = round(100 * rng.choice(SEQUENCE_S))
            size = max(1, batch_frames // n_frames)
            elements, token = self._slots(size, rng)
            place, fits = self._in_a_row(elements, n_frames, rng)
            kind = rng.random(size)
            running = (kind < RUNNING) & self._has("speech")
            fits &= ~running[:, None] & (kind < 1 - EMPTY)[:, None]
            lots = []
            for slot in range(SLOTS):
                rows = np.flatnonzero(fits[:, slot])
                some = laid(elements[rows, slot], place[rows, slot], n_frames, fill=False)
                some["row"] = rows
                lots.append(some)
            if running.any():
                some = self._stretches("speech", int(running.sum()), n_frames, rng)
                some["row"] = np.flatnonzero(running)
                lots.append(some)
            unknown = self.labels.index(UNKNOWN)
            token = np.where(fits, token, -1)
            token[running, 0] = unknown
            label, count = transcripts(token, unknown)
            noises = self.noises(size, n_frames, rng)
            targets = torch.from_numpy(label), torch.from_numpy(count), torch.ones(size, dtype=torch.bool)
            yield Plan(np.concatenate(lots), noises, size, n_frames, *targets)

    def _slots(self, size: int, rng: np.random.Generator) -> tuple[Elements, Numbers]:
        """`SLOTS` elements and their tokens for each sequence, (size, SLOTS); -1 for sounds without a token."""
        kinds = self._kinds(SEQUENCE, size * SLOTS, rng).reshape(size, SLOTS)
        again = rng.random((size, SLOTS)) < REPEAT
        elements, token = np.zeros((size, SLOTS), ELEMENT), np.full((size, SLOTS), -1)
        for kind in np.unique(kinds):
            rows = kinds == kind
            n = int(rows.sum())
            if kind == "speech":
                elements[rows] = self._cut(*self._piece(n, 200, rng), rng, False)
                token[rows] = self.labels.index(UNKNOWN)
            elif kind == "event":
                sounds = rng.choice(self.pools["event"], n)
                elements[rows] = self._cut(sounds, *self._stretch(sounds, 10, 70, rng), rng, False)
            else:
                words = rng.choice(self.choices[str(kind)], n)
                elements[rows] = self._whole(self._recordings(words, rng), rng, False)
                token[rows] = self.label_of[words]
        for slot in range(1, SLOTS):
            rows = again[:, slot] & (token[:, slot - 1] >= 0)
            elements[rows, slot], token[rows, slot] = elements[rows, slot - 1], token[rows, slot - 1]
        elements["tract"] = self._tract(size, rng)[:, None]
        return elements, token

    def _in_a_row(
        self, elements: Elements, n_frames: int, rng: np.random.Generator
    ) -> tuple[Numbers, NDArray[np.bool_]]:
        """The place of each element, and which fit; a random part of the remaining time goes before them."""
        shape = elements.shape
        limits = np.array(GAPS)[rng.choice(len(GAPS), shape, p=GAP_SHARES)]
        gaps = limits[..., 0] + (rng.random(shape) * (limits[..., 1] - limits[..., 0])).astype(np.int64)
        gaps[:, 0] = 0
        end = np.cumsum(gaps + elements["trail"], 1)
        wanted = np.where(rng.random(shape[0]) < 0.6, SLOTS, rng.integers(1, SLOTS, shape[0]))
        fits = np.logical_and.accumulate(end <= n_frames, axis=1) & (np.arange(SLOTS) < wanted[:, None])
        used = np.where(fits, end, 0).max(1)
        offset = (rng.random(shape[0]) * (n_frames - used + 1)).astype(np.int64)
        return offset[:, None] + end - elements["trail"], fits


def transcripts(tokens: Numbers, unknown: int) -> tuple[Numbers, Numbers]:
    """Tokens (sequences, slots), -1 for none -> packed tokens padded with 0, and their numbers (sequences,).

    A run of `unknown` counts once.
    """
    last = np.full(len(tokens), -1)
    keep = np.zeros(tokens.shape, bool)
    for slot in range(tokens.shape[1]):
        there = tokens[:, slot] >= 0
        keep[:, slot] = there & ((tokens[:, slot] != unknown) | (last != unknown))
        last = np.where(there, tokens[:, slot], last)
    count = keep.sum(1)
    packed = np.zeros((len(tokens), max(1, count.max(initial=0))), np.int64)
    for row, chosen in enumerate(keep):
        packed[row, : count[row]] = tokens[row, chosen]
    return packed, count
