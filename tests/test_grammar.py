import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.errors import ConfigError
from speech.grammar import END, Grammar, NGram

WORDS = ("left", "right", "go", "one", "two", "stop")
STRINGS = ["".join(letters) for n in range(5) for letters in itertools.product("abc", repeat=n)]


def state(grammar: Grammar, words: str | list[str]) -> int | None:
    at: int | None = grammar.start
    for word in words:
        at = None if at is None else grammar.step(at, word)
    return at


def allows(grammar: Grammar, words: str | list[str]) -> bool:
    at = state(grammar, words)
    return at is not None and grammar.accepts(at)


# Grammars over one-letter words are regular expressions once the spaces are gone.
texts = st.recursive(
    st.sampled_from("abc"),
    lambda part: st.one_of(
        st.tuples(part, part).map(" ".join),
        st.tuples(part, part).map(lambda pair: f"({' | '.join(pair)})"),
        st.tuples(part, st.sampled_from("?*+")).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=7,
)


@settings(deadline=None, max_examples=60)
@given(texts)
def test_agrees_with_regular_expressions(text: str) -> None:
    pattern = text.replace(" ", "")
    grammar = Grammar.parse(text, "abc")
    repeated = grammar.repeated()
    for string in STRINGS:
        assert allows(grammar, string) == bool(re.fullmatch(pattern, string)), string
        assert allows(repeated, string) == bool(re.fullmatch(f"({pattern})+", string)), string
    assert grammar.words == set(text) & set("abc")


@settings(deadline=None, max_examples=40)
@given(texts, st.text("abc", max_size=5))
def test_longest_sentence_leaves_out_as_few_words_as_possible(text: str, words: str) -> None:
    grammar = Grammar.parse(text, "abc")
    kept = grammar.longest_sentence(words)
    subsets = [list(c) for n in range(len(words) + 1) for c in itertools.combinations(range(len(words)), n)]
    sentences = [c for c in subsets if not c or allows(grammar, [words[i] for i in c])]
    assert kept in sentences
    assert len(kept) == max(map(len, sentences))


def test_of_equal_words_the_later_makes_the_longest_sentence() -> None:
    assert Grammar.parse("go (one | two)", WORDS).longest_sentence(["go", "go", "two"]) == [1, 2]


@settings(deadline=None, max_examples=40)
@given(texts)
def test_no_state_is_a_dead_end(text: str) -> None:
    grammar = Grammar.parse(text, "abc")
    reached, fresh = {grammar.start}, [grammar.start]
    targets: dict[int, set[int]] = {}
    while fresh:
        at = fresh.pop()
        steps = (grammar.step(at, letter) for letter in "abc")
        targets[at] = {target for target in steps if target is not None}
        fresh += targets[at] - reached
        reached |= targets[at]
    alive = {at for at in reached if grammar.accepts(at)}
    for _ in reached:
        alive |= {at for at in reached if targets[at] & alive}
    assert alive == reached


def test_any_of_some_words_allows_them_in_any_order() -> None:
    grammar = Grammar.any_of(["a", "b"])
    assert grammar.words == {"a", "b"}
    assert grammar.accepts(grammar.start)
    for sentence in ("a", "b a a", "b b b b"):
        state: int | None = grammar.start
        for word in sentence.split():
            assert state is not None
            state = grammar.step(state, word)
        assert state is not None
        assert grammar.accepts(state)
    assert grammar.step(grammar.start, "c") is None


def test_any_of_some_words_takes_words_that_a_text_could_not_spell() -> None:
    grammar = Grammar.any_of(["turn on", "a|b", "#"])
    assert grammar.words == {"turn on", "a|b", "#"}
    assert allows(grammar, ["turn on", "#", "a|b", "turn on"])
    assert not allows(grammar, ["turn"])
    with pytest.raises(ConfigError, match="needs words"):
        Grammar.any_of([])


def test_a_grammar_file_may_hold_comments_and_new_lines() -> None:
    grammar = Grammar.parse("# where to\n(left|right)   # one of them\n| go\n  (one | two)?\n", WORDS)
    for sentence in (["left"], ["go"], ["go", "two"]):
        assert allows(grammar, sentence)
    for other in ([], ["left", "right"], ["one"], ["go", "one", "two"], ["stop"]):
        assert not allows(grammar, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("go left trun", "grammar, line 1, column 9: 'trun' is not a word of the model; it knows left, right, go, .*: "
         "go left >>trun<<$"),
        ("left |\n  Rihgt", "line 2, column 3: 'Rihgt' is not a word of the model"),
        ("go (one | two", r"line 1, column 4: '\(' without '\)': go >>\(<<one \| two$"),
        ("go one) | left", r"line 1, column 7: '\)' without '\('"),
        ("left | ? right", r"column 8: '\?' needs a word or '\)' before it: left \| >>\?<< right$"),
        ("* left", r"column 1: '\*' needs a word"),
        ("left | | right", r"column 8: expected a word or '\(' before '\|'"),
        ("left |", "column 7: expected a word or '\\(' at the end: left |>><<"),
        ("go ()", r"column 5: expected a word or '\(' before '\)'"),
        ("go (one |) left", r"column 10: expected a word or '\(' before '\)'"),
        ("", "the grammar is empty"),
        (" # left\n", "the grammar is empty"),
        ("(" * 5000 + "left" + ")" * 5000, "more than 100 nested parentheses"),
        ("(left | right)* left" + " (left | right)" * 20, "more than 10000 states"),
        ("(" + " | ".join(["left"] * 5000) + ")*", "too many transitions"),
        ("left? " * 1700, "takes too long to compile"),
        ("left? " * 3000, "too many transitions"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_in_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Grammar.parse(text, WORDS)
    assert "\n" not in str(caught.value)


def test_witten_bell_by_hand() -> None:
    model = NGram.train([["a", "b"], ["a"]], "ab", order=2)
    # Of five events two were a, one b, two the end: three kinds.  After a: b and the end, once each.
    assert math.exp(model.log_prob((), "b")) == pytest.approx((0 + 1 * (1 + 3 / 3) / 8) / (2 + 1))
    assert math.exp(model.log_prob(("a",), "b")) == pytest.approx((1 + 2 * (1 + 3 / 3) / 8) / (2 + 2))
    assert model.log_prob(("b", "b", "a"), "b") == model.log_prob(("a",), "b")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abc", max_size=5), max_size=5), st.integers(1, 4), st.text("abcd", max_size=4))
def test_probabilities_sum_to_one_after_any_history(sequences: list[str], order: int, history: str) -> None:
    model = NGram.train([list(s) for s in sequences], "abcd", order)
    total = sum(math.exp(model.log_prob(tuple(history), word)) for word in [*"abcd", END])
    assert total == pytest.approx(1)


def test_what_followed_is_more_probable() -> None:
    model = NGram.train([["go", "one"], ["go", "two"], ["left", "stop"]], WORDS)
    assert model.log_prob(("go",), "one") > model.log_prob(("left",), "one")


def test_words_may_be_written_in_capitals() -> None:
    assert Grammar.parse("Go ONE | stop", WORDS).words == {"go", "one", "stop"}


def test_a_log_is_counted_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("Go one\n\n  left   LEFT stop\r\ngo two")
    model = NGram.load(path, WORDS)
    same = NGram.train([["go", "one"], ["left", "left", "stop"], ["go", "two"]], WORDS, order=2)
    for history in ((), ("go",), ("left",)):
        assert [model.log_prob(history, w) for w in WORDS] == [same.log_prob(history, w) for w in WORDS]
    assert NGram.load(path, WORDS, order=3).order == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"go one\n\nleft lfet\n", "log.txt, line 3: 'lfet' is not a word of the model; it knows "),
        (b"gone", "log.txt, line 1: 'gone' is not a word"),
        (b"", "log.txt: no words; expected a line for each past utterance"),
        (b" \n\n", "log.txt: no words"),
        (b"go \xff", "log.txt: not UTF-8 from byte 3"),
        (None, "log.txt: No such file"),
    ],
)
def test_a_log_that_cannot_be_counted_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "log.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        NGram.load(path, WORDS)
    assert "\n" not in str(caught.value)


def test_the_gain_is_that_over_equal_chances() -> None:
    model = NGram.train([["go", "one"]] * 3, WORDS)
    for word in WORDS:
        assert math.exp(model.log_gain(("go",), word)) == pytest.approx(
            math.exp(model.log_prob(("go",), word)) * (len(WORDS) + 1)
        )
        assert model.log_gain(("go",), word) <= model.most_gain
        assert NGram.train([], WORDS).log_gain(("go",), word) == pytest.approx(0)


def test_wrong_language_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="'up' is not a word"):
        NGram.train([["up"]], WORDS)
    with pytest.raises(ConfigError, match="'up' is not a word"):
        NGram.train([], WORDS).log_prob((), "up")
    with pytest.raises(ConfigError, match="order"):
        NGram.train([], WORDS, order=0)
    with pytest.raises(ConfigError, match="needs words"):
        NGram.train([], ())
