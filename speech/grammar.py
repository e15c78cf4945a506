"""Models of word sequences: a grammar of the allowed sentences, and an n-gram model of their probabilities."""

import math
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech.errors import ConfigError
from speech.settings import match_name, read_text

START, END = "_start_", "_end_"
"""Tokens that an n-gram model sees before the first word and predicts after the last."""

_LARGEST = 10_000  # states; a mistake such as (a|b)* a (a|b)(a|b)... doubles them with every group
_DEEPEST = 100  # nested parentheses
_LONGEST = 3_000_000  # compilation steps, a few seconds on one core
_LEXEME = re.compile(r"#.*|[|()?*+]|[^\s|()?*+#]+|\Z")


class Grammar:
    """Sentences as a deterministic graph: states are integers, edges carry words.

    Every state can still reach the end of a sentence: a prefix that `step` allows is never a dead end.

    A place is one occurrence of a word in the text of the grammar.

    Source: Glushkov (1961), "The abstract theory of automata": a state of the graph is the set of places that the
    last word may have matched.

    Args:
        words: the word at each place; place 0 is the start and holds "".
        follow: for each place, the places that may come next.
        last: the places at which a sentence may end; includes 0 if a sentence may be empty.
    Raises:
        ConfigError: more than 10,000 states, or more than a few seconds of compilation.
    """

    def __init__(self, words: Sequence[str], follow: Sequence[Collection[int]], last: Collection[int]) -> None:
        self._places, self._follow, self._last = tuple(words), tuple(map(frozenset, follow)), frozenset(last)
        self.start = 0
        states = {frozenset({0}): self.start}
        fresh = deque(states)
        self._edges: list[dict[str, int]] = []
        n_steps = 0
        while fresh:
            targets: dict[str, set[int]] = {}
            next_places = [self._follow[place] for place in fresh.popleft()]
            n_steps += sum(map(len, next_places))
            for place in frozenset[int]().union(*next_places):
                targets.setdefault(self._places[place], set()).add(place)
            for target in map(frozenset, targets.values()):
                if target not in states:
                    states[target] = len(states)
                    fresh.append(target)
            if len(states) > _LARGEST:
                raise ConfigError(f"the grammar has more than {_LARGEST} states; nest fewer * and + over shared words")
            if n_steps > _LONGEST:
                raise ConfigError("the grammar takes too long to compile; make fewer words optional or repeated")
            self._edges.append({word: states[frozenset(target)] for word, target in targets.items()})
        self._accepting = [bool(state & self._last) for state in states]

    @classmethod
    def parse(cls, text: str, words: Collection[str]) -> "Grammar":
        """Compile a text such as `(turn)? (left|right) | stop`.

        Adjacent words form a sequence, `|` separates alternatives, and `( )` groups.  The postfix `?` makes an item
        optional, `*` repeats it any number of times, `+` at least once.  `#` begins a comment; a line break is a space.

        Args:
            text: the grammar.
            words: the words that the model knows.
        Raises:
            ConfigError: a word outside `words`, a misplaced parenthesis, operator or alternative, or an empty text.
        """
        return _Parser(text, words).grammar()

    @classmethod
    def any_of(cls, words: Collection[str]) -> "Grammar":
        """Any number of these words in any order.

        Raises:
            ConfigError: `words` is empty.
        """
        if not words:
            raise ConfigError("a grammar needs words")
        places = range(1, len(words) + 1)
        return cls(["", *words], [places] * (len(words) + 1), range(len(words) + 1))

    @property
    def words(self) -> frozenset[str]:
        """All words of the grammar."""
        return frozenset(self._places[1:])

    def repeated(self) -> "Grammar":
        """A grammar that accepts sentences of this one in sequence, as in a stream."""
        again = [places | self._follow[0] if p in self._last else places for p, places in enumerate(self._follow)]
        return Grammar(self._places, again, self._last)

    def step(self, state: int, word: str) -> int | None:
        """The state after `word`, or None if `word` is not allowed here."""
        return self._edges[state].get(word)

    def accepts(self, state: int) -> bool:
        """Whether a sentence may end in this state."""
        return self._accepting[state]

    def longest_sentence(self, words: Iterable[str]) -> list[int]:
        """Drop as few of `words` as possible, so that the rest is a sentence.

        Returns:
            indices of the words kept, the later ones where there is a choice; [] if no sentence is possible.
        """
        kept: dict[int, list[int]] = {self.start: []}  # indices of the longest path to each state
        for position, word in enumerate(words):
            for state, before in list(kept.items()):
                target = self.step(state, word)
                if target is not None and len(before) >= len(kept.get(target, [])) - 1:
                    kept[target] = [*before, position]
        return max((kept[state] for state in kept if self.accepts(state)), key=len, default=[])


@dataclass(frozen=True)
class _Part:
    """A part of a parsed grammar."""

    empty: bool
    """Whether it may match no word."""
    first: frozenset[int]
    """Places of its first word."""
    last: frozenset[int]
    """Places of its last word."""


class _Parser:
    """Recursive descent: alternatives -> sequence -> item."""

    def __init__(self, text: str, words: Collection[str]) -> None:
        self._text, self._words = text, words
        self._lexemes = deque(match for match in _LEXEME.finditer(text) if not match[0].startswith("#"))
        self._places = [""]
        self._follow: list[set[int]] = [set()]
        self._depth, self._n_links = 0, 0

    def grammar(self) -> Grammar:
        if not self._lexemes[0][0]:
            raise ConfigError("the grammar is empty; expected words, as in: left | right | go (one | two)?")
        part = self._alternatives()
        if self._next:
            raise self._error("')' without '('")
        self._follow[0] = set(part.first)
        return Grammar(self._places, self._follow, part.last | ({0} if part.empty else set()))

    def _alternatives(self) -> _Part:
        part = self._sequence()
        while self._next == "|":
            self._lexemes.popleft()
            other = self._sequence()
            part = _Part(part.empty or other.empty, part.first | other.first, part.last | other.last)
        return part

    def _sequence(self) -> _Part:
        part = self._item()
        while self._next not in ("|", ")", ""):
            after = self._item()
            self._link(part.last, after.first)
            first = part.first | after.first if part.empty else part.first
            last = part.last | after.last if after.empty else after.last
            part = _Part(part.empty and after.empty, first, last)
        return part

    def _item(self) -> _Part:
        part = self._group() if self._next == "(" else self._word()
        while self._next and self._next in "?*+":
            operator = self._lexemes.popleft()[0]
            if operator in "*+":
                self._link(part.last, part.first)
            part = _Part(part.empty or operator in "?*", part.first, part.last)
        return part

    def _group(self) -> _Part:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(f"more than {_DEEPEST} nested parentheses")
        opening = self._lexemes.popleft()
        part = self._alternatives()
        if self._next != ")":
            raise self._error("'(' without ')'", opening)
        self._lexemes.popleft()
        self._depth -= 1
        return part

    def _word(self) -> _Part:
        if self._next in ("|", ")", ""):
            raise self._error("expected a word or '(' " + (f"before {self._next!r}" if self._next else "at the end"))
        if self._next in "?*+":
            raise self._error(f"{self._next!r} needs a word or ')' before it")
        word = match_name(self._next, self._words)
        if word not in self._words:
            raise self._error(f"{self._next!r} is not a word of the model; it knows {', '.join(self._words)}")
        self._lexemes.popleft()
        self._places.append(word)
        self._follow.append(set())
        place = frozenset({len(self._places) - 1})
        return _Part(False, place, place)

    @property
    def _next(self) -> str:
        return self._lexemes[0][0]

    def _link(self, before: Collection[int], after: Collection[int]) -> None:
        self._n_links += len(before) * len(after)
        if self._n_links > _LONGEST:
            raise ConfigError("the grammar has too many transitions between words; repeat fewer alternatives")
        for place in before:
            self._follow[place].update(after)

    def _error(self, problem: str, where: re.Match[str] | None = None) -> ConfigError:
        """One line: line and column, counted from 1, the problem, and an excerpt with the place between >> and <<."""
        where = where or self._lexemes[0]
        begin = self._text.rfind("\n", 0, where.start()) + 1
        line, column = self._text.count("\n", 0, begin) + 1, where.start() - begin + 1
        before, after = self._text[begin : where.start()], self._text[where.end() :].partition("\n")[0]
        excerpt = f"{before[-30:]}>>{where[0]}<<{after[:30]}".strip()
        return ConfigError(f"grammar, line {line}, column {column}: {problem}: {excerpt}")


def _check_words(sequence: Sequence[str], words: Collection[str]) -> None:
    """Raise ConfigError if a word of the sequence is not among `words`."""
    for word in sequence:
        if word not in words:
            raise ConfigError(f"{word!r} is not a word of the model; it knows {', '.join(words)}")


class NGram:
    """Probability of a word, or of the end of the sequence, given the words before it.

    Counts are interpolated with those of ever shorter histories, down to a uniform distribution:
    P(word | history) = (count(history, word) + T * P(word | shorter history)) / (count(history) + T),
    where T is the number of different words seen after the history.

    Source: Witten and Bell (1991), "The zero-frequency problem", method C, interpolated as in Chen and Goodman (1998),
        "An empirical study of smoothing techniques for language modeling".

    Args:
        words: the words that the model knows.
        order: n of the n-gram, the predicted word included; 2 is a bigram.
        counts: history of up to `order` - 1 words -> how often each word, or END, came after it.
    Raises:
        ConfigError: no words, or an order below 1.
    """

    def __init__(self, words: Collection[str], order: int, counts: Mapping[tuple[str, ...], Mapping[str, int]]) -> None:
        if not words or order < 1:
            raise ConfigError(f"an n-gram model needs words and an order of at least 1, not {order} over {list(words)}")
        self.words, self.order = tuple(words), order
        self._counts = {history: dict(after) for history, after in counts.items()}
        self._totals = {history: sum(after.values()) for history, after in counts.items()}
        self._known = frozenset((*words, END))

    @classmethod
    def train(cls, sequences: Iterable[Sequence[str]], words: Collection[str], order: int = 2) -> "NGram":
        """Count command sequences.

        Args:
            sequences: the words of each sequence.
            words: the words that the model knows.
            order: n of the n-gram, the predicted word included; 2 is a bigram.
        Raises:
            ConfigError: a word outside `words`.
        """
        counts: dict[tuple[str, ...], Counter[str]] = {}
        for sequence in sequences:
            _check_words(sequence, words)
            padded = (*(START,) * (order - 1), *sequence, END)
            for position in range(order - 1, len(padded)):
                for length in range(order):
                    history = padded[position - length : position]
                    counts.setdefault(history, Counter())[padded[position]] += 1
        return cls(words, order, counts)

    @classmethod
    def load(cls, path: str | Path, words: Collection[str], order: int = 2) -> "NGram":
        """Count a log of commands: a text file with one line for each past utterance, such as `left left stop`.

        Args:
            path: the file; empty lines are ignored.
            words: the vocabulary.
            order: length of the n-grams in words; 2 for bigrams.
        Raises:
            ConfigError: the file can't be read, has no words, or has a word outside `words`; it names the line.
        """
        sequences = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            sequence = [match_name(word, words) for word in line.split()]
            try:
                _check_words(sequence, words)
            except ConfigError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from error
            sequences += [sequence] if sequence else []
        if not sequences:
            raise ConfigError(f"{path}: no words; expected a line for each past utterance, as in: left left stop")
        return cls.train(sequences, words, order)

    @property
    def start(self) -> tuple[str, ...]:
        """The history before the first word: `order` - 1 times START."""
        return (START,) * (self.order - 1)

    def log_prob(self, history: tuple[str, ...], word: str) -> float:
        """Natural logarithm of the probability of `word` (or END) after `history`, the sequence so far.

        Raises:
            ConfigError: a word that the model does not know.
        """
        if word not in self._known:
            raise ConfigError(f"{word!r} is not a word of the language model; it knows {', '.join(self.words)}")
        history = (*self.start, *history)[len(history) :]  # the last order - 1
        probability = 1 / len(self._known)
        for length in range(self.order):
            shorter = history[len(history) - length :]
            after = self._counts.get(shorter, {})
            if after:
                kinds = len(after)
                probability = (after.get(word, 0) + kinds * probability) / (self._totals[shorter] + kinds)
        return math.log(probability)

    def log_gain(self, history: tuple[str, ...], word: str) -> float:
        """Logarithm of the probability of `word` after `history` over that of equally likely words.

        At most `most_gain`; 0 for every word if nothing was counted.  Raises ConfigError as `log_prob` does.
        """
        return self.log_prob(history, word) + self.most_gain

    @property
    def most_gain(self) -> float:
        """The `log_gain` of a word with probability 1."""
        return math.log(len(self._known))
