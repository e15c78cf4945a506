import itertools
import math
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from speech.errors import ConfigError
from speech.grammar import Grammar, NGram
from speech.results import SpokenWord
from speech.sequences import BLANK, FILLER, align, beam_search, confidences, greedy

LABELS = ("left", "right", "stop", FILLER, BLANK)
SMALL = ("a", BLANK, "b", FILLER)

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def frames(*rows: dict[str, float]) -> Array:
    """Log posteriors over LABELS; what a row does not give away is shared by the other tokens."""
    table = np.empty((len(rows), len(LABELS)))
    for row, stated in zip(table, rows, strict=True):
        row[:] = [stated.get(label, (1 - sum(stated.values())) / (len(LABELS) - len(stated))) for label in LABELS]
    return np.log(table)


def spoken(*labels: str, p: float = 0.96) -> Array:
    """Two frames for each label, a blank after it."""
    return frames(*({label: p} for word in labels for label in (word, word, BLANK)))


def words(spans: list[SpokenWord]) -> list[str]:
    return [span.word for span in spans if span.word != FILLER]


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def probabilities(log_probs: Array, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every token sequence, summed path by path."""
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        sums[collapse(path, blank)] += math.exp(sum(log_probs[frame, token] for frame, token in enumerate(path)))
    return sums


logits = st.integers(1, 5).flatmap(lambda n: arrays(np.float64, (n, len(SMALL)), elements=st.floats(-3, 3)))


@pytest.mark.parametrize("grammar", [None, "a b", "(a | b b)+ | b a?"])
@pytest.mark.parametrize("with_model", [False, True])
@settings(deadline=None, max_examples=20)
@given(logits)
def test_the_search_finds_the_most_probable_sequence(grammar: str | None, with_model: bool, logits: Array) -> None:
    log_probs = log_softmax(logits)
    rules = Grammar.parse(grammar, "ab") if grammar else None
    model = NGram.train(["ab", "abb", "b"], "ab", order=3) if with_model else None
    scores = {}
    for tokens, probability in probabilities(log_probs, SMALL.index(BLANK)).items():
        sentence = [SMALL[token] for token in tokens if SMALL[token] != FILLER]
        if rules and sentence and rules.longest_sentence(sentence) != list(range(len(sentence))):
            continue
        bonus = (
            sum(model.log_prob(tuple(sentence[:i]), w) + math.log(3) for i, w in enumerate(sentence)) if model else 0
        )
        scores[tokens] = math.log(probability) + 0.8 * bonus
    found = beam_search(log_probs, SMALL, 1000, rules, model, weight=0.8)
    assert scores[tuple(SMALL.index(span.word) for span in found)] == pytest.approx(max(scores.values()), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(logits, st.integers(1, 6))
def test_tokens_lie_in_order_within_the_frames(logits: Array, beam: int) -> None:
    log_probs = log_softmax(3 * logits)
    for spans in (greedy(log_probs, SMALL), beam_search(log_probs, SMALL, beam)):
        edges = [frame for span in spans for frame in (span.start_s, span.end_s)]
        assert edges == sorted(edges)
        assert all(0 <= span.start_s < span.end_s <= len(logits) and 0 <= span.confidence <= 1 for span in spans)


@settings(deadline=None, max_examples=40)
@given(logits)
def test_greedy_is_the_best_path(logits: Array) -> None:
    log_probs = log_softmax(logits)
    best = collapse(tuple(log_probs.argmax(1)), SMALL.index(BLANK))
    assert [span.word for span in greedy(log_probs, SMALL)] == [SMALL[token] for token in best]


def test_clear_words_have_their_times_and_high_confidence() -> None:
    log_probs = spoken("left", FILLER, "stop", "stop", p=0.99)
    for spans in (greedy(log_probs, LABELS), beam_search(log_probs, LABELS), beam_search(log_probs, LABELS, beam=1)):
        assert [(s.word, s.start_s, s.end_s) for s in spans] == [
            ("left", 0, 2), (FILLER, 3, 5), ("stop", 6, 8), ("stop", 9, 11),
        ]  # fmt: skip
        assert all(span.confidence > 0.98 for span in spans)


def test_alignments_add_up_where_the_best_path_loses() -> None:
    log_probs = frames(*[{BLANK: 0.6, "left": 0.3997}] * 2)  # blank twice: 0.36; left in three ways: 0.64
    assert greedy(log_probs, LABELS) == []
    assert words(beam_search(log_probs, LABELS)) == ["left"]


def test_impossible_tokens_and_float32_are_fine() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(len(LABELS), dtype=np.float32)[[4, 0, 4, 0, 1, 4, 4, 3]])
    for spans in (greedy(log_probs, LABELS), beam_search(log_probs, LABELS)):
        assert [s.word for s in spans] == ["left", "left", "right", FILLER]
        assert [s.start_s for s in spans] == [1, 3, 4, 7]
        assert min(s.confidence for s in spans) > 0.999


def test_alignment_agrees_with_torchaudio() -> None:
    generator = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        n_frames, n_tokens = generator.integers(1, 14), generator.integers(2, 6)
        blank = int(generator.integers(n_tokens))
        log_probs = log_softmax(3 * generator.standard_normal((n_frames, n_tokens)))
        others = [token for token in range(n_tokens) if token != blank]
        tokens = generator.choice(others, generator.integers(1, 8)).tolist()
        batch = torch.from_numpy(log_probs)[None], torch.tensor([tokens], dtype=torch.int32)
        try:
            path, scores = torchaudio.functional.forced_align(*batch, blank=blank)
        except RuntimeError:
            refused += 1
            with pytest.raises(ConfigError, match="need at least"):
                align(log_probs, tokens, blank)
            continue
        theirs = torchaudio.functional.merge_tokens(path[0], scores[0], blank=blank)
        assert align(log_probs, tokens, blank) == [(span.start, span.end) for span in theirs]
    assert 10 < refused < 140


def test_alignment_of_nothing_and_of_what_can_not_be() -> None:
    assert align(spoken("left"), [], 4) == []
    for tokens in ([4], [5], [-1]):
        with pytest.raises(ConfigError, match=r"must lie in 0\.\.4"):
            align(spoken("left"), tokens, 4)


@settings(deadline=None, max_examples=30)
@given(logits)
def test_confidence_is_the_share_among_single_tokens_and_nothing(logits: Array) -> None:
    log_probs, blank = log_softmax(logits), SMALL.index(BLANK)
    exact = probabilities(log_probs, blank)
    shares = np.array([exact[() if token == blank else (token,)] for token in range(len(SMALL))])
    np.testing.assert_allclose(confidences(log_probs, blank), shares / shares.sum(), rtol=1e-9)


def test_confidence_grows_from_nothing_over_a_half_to_one() -> None:
    confidence = [
        confidences(frames(*[{"left": p * 0.98, FILLER: (1 - p) * 0.98}] * 4), 4)[0] for p in np.linspace(0.01, 0.99, 9)
    ]
    assert confidence == sorted(confidence)
    assert confidence[0] < 0.01
    assert confidence[4] == pytest.approx(0.5, abs=0.01)
    assert confidence[-1] > 0.99


def test_silence_around_a_word_leaves_its_confidence() -> None:
    quiet, word = frames(*[{BLANK: 0.9999}] * 500), frames(*[{"left": 0.9}] * 3)
    alone, within = confidences(word, 4)[0], confidences(np.concatenate([quiet, word, quiet]), 4)[0]
    assert within == pytest.approx(alone, abs=0.01)
    assert confidences(np.concatenate([quiet, quiet]), 4)[4] > 0.9  # nothing


def test_frames_before_the_last_word_do_not_count_against_the_next() -> None:
    left, stop = beam_search(spoken("left", "stop"), LABELS)
    assert min(left.confidence, stop.confidence) > 0.95


def test_a_word_outside_the_grammar_does_not_count_against_the_one_before() -> None:
    log_probs = np.concatenate([spoken("left"), frames(*[{"stop": 0.98, BLANK: 0.019}] * 2, {BLANK: 0.96})])
    (left,) = beam_search(log_probs, LABELS, grammar=Grammar.parse("left | right", LABELS[:3]))
    assert (left.word, left.start_s, left.end_s) == ("left", 0, 2)
    assert left.confidence > 0.95


def test_a_grammar_takes_the_sequence_that_it_allows() -> None:
    log_probs = np.concatenate([spoken("left"), frames(*[{"right": 0.5, "stop": 0.4}] * 2)])
    assert words(beam_search(log_probs, LABELS)) == ["left", "right"]
    assert words(beam_search(log_probs, LABELS, grammar=Grammar.parse("left stop", LABELS[:3]))) == ["left", "stop"]


@pytest.mark.parametrize("beam", [1, 16])
@pytest.mark.parametrize(
    ("grammar", "repeated", "said", "reported"),
    [
        ("left | right", False, ["left", "stop"], ["left"]),
        ("left | right", False, ["stop"], []),
        ("left | right", True, ["left", "stop", "right"], ["left", "right"]),
        ("left right", False, ["left"], []),
        ("left right", False, ["left", FILLER, "right"], ["left", "right"]),
        ("left right", True, ["left", "right", "left"], ["left", "right"]),
        ("stop | left right", True, ["stop", "left", "right", "stop"], ["stop", "left", "right", "stop"]),
        ("stop?", False, ["left"], []),
    ],
)
def test_only_sentences_are_reported(
    grammar: str, repeated: bool, said: list[str], reported: list[str], beam: int
) -> None:
    rules = Grammar.parse(grammar, LABELS[:3])
    rules = rules.repeated() if repeated else rules
    assert words(beam_search(spoken(*said), LABELS, beam, rules, threshold=0.5)) == reported


def test_without_a_threshold_a_grammar_forces_its_nearest_word() -> None:
    log_probs = frames({"stop": 0.9, "left": 0.08, "right": 0.01, FILLER: 0.005})
    rules = Grammar.parse("left | right", LABELS[:3])
    (forced,) = beam_search(log_probs, LABELS, grammar=rules)
    assert forced.word == "left"
    assert forced.confidence == pytest.approx(0.08)
    assert beam_search(log_probs, LABELS, grammar=rules, threshold=0.1) == []


def test_a_doubtful_word_takes_its_sentence_with_it() -> None:
    doubtful = frames(*[{"stop": 0.5, FILLER: 0.45}] * 2, {BLANK: 0.96})
    log_probs = np.concatenate([spoken("right", "left"), doubtful])
    rules = Grammar.parse("right | left stop", LABELS[:3]).repeated()
    assert words(beam_search(log_probs, LABELS, grammar=rules)) == ["right", "left", "stop"]
    assert words(beam_search(log_probs, LABELS, threshold=0.8)) == ["right", "left"]
    assert words(beam_search(log_probs, LABELS, grammar=rules, threshold=0.8)) == ["right"]


def test_a_language_model_weighs() -> None:
    log_probs = frames({"left": 0.4, "right": 0.35, BLANK: 0.24})
    model = NGram.train([["right"]] * 20, LABELS[:3])
    assert words(beam_search(log_probs, LABELS)) == ["left"]
    assert words(beam_search(log_probs, LABELS, language_model=model)) == ["right"]
    assert words(beam_search(log_probs, LABELS, language_model=model, weight=0)) == ["left"]


def test_a_language_model_that_has_counted_nothing_changes_nothing() -> None:
    log_probs = frames({"left": 0.4, "right": 0.35, BLANK: 0.24}, {BLANK: 0.97}, {"stop": 0.3, FILLER: 0.3, BLANK: 0.3})
    nothing = NGram.train([], LABELS[:3])
    found, same = beam_search(log_probs, LABELS), beam_search(log_probs, LABELS, language_model=nothing)
    assert [(s.word, s.start_s, s.end_s) for s in same] == [(s.word, s.start_s, s.end_s) for s in found]
    assert [s.confidence for s in same] == pytest.approx([s.confidence for s in found])


@pytest.mark.parametrize("said", [("left",), ("left", FILLER)])
def test_the_confidence_counts_the_language_model(said: tuple[str, ...]) -> None:
    """Its odds against everything else are those of the audio, times each word's gain to the power of the weight."""
    log_probs = np.concatenate([spoken(*said), frames({"left": 0.3, "right": 0.3, BLANK: 0.3})])
    model = NGram.train([["left", "right"]] * 6 + [["right"]] * 3, LABELS[:3])
    *_, plain = beam_search(log_probs, LABELS, grammar=Grammar.parse("left right", LABELS[:3]))
    *before, second = beam_search(log_probs, LABELS, language_model=model, weight=0.7)
    assert (*(span.word for span in before), second.word) == (*said, "right")
    posteriors = np.exp(log_probs[-1])
    gains = [4 * math.exp(model.log_prob(("left",), word)) for word in LABELS[:3]]
    weighed = posteriors * [*(gain**0.7 for gain in gains), 1, 1]
    assert plain.confidence == pytest.approx(0.3, rel=0.01)
    assert second.confidence == pytest.approx(weighed[1] / weighed.sum(), rel=0.01)
    assert second.confidence > 0.45


def test_a_word_that_the_language_model_expects_is_kept_in_a_narrow_beam() -> None:
    """Its bonus counts when the search decides which continuations are worth a look."""
    log_probs = frames({BLANK: 0.7, "left": 0.1})
    model = NGram.train([["left"]] * 50, LABELS[:3])
    assert words(beam_search(log_probs, LABELS, beam=1, language_model=model, weight=3.0)) == ["left"]
    assert words(beam_search(log_probs, LABELS, beam=1, language_model=model, weight=1.0)) == []


def test_few_frames() -> None:
    assert greedy(np.empty((0, 5)), LABELS) == beam_search(np.empty((0, 5), np.float32), LABELS) == []
    for decode in (greedy, beam_search):
        assert decode(frames(*[{BLANK: 0.9}] * 20), LABELS) == []
        assert decode(frames({BLANK: 0.9}), LABELS) == []
        (span,) = decode(frames({"stop": 0.9}), LABELS)
        assert (span.word, span.start_s, span.end_s) == ("stop", 0, 1)


def test_wrong_input_is_refused() -> None:
    broken = spoken("left")
    broken[1, 2] = np.nan
    for decode in (greedy, beam_search):
        with pytest.raises(ConfigError, match="NaN"):
            decode(broken, LABELS)
        with pytest.raises(ConfigError, match="probabilities"):
            decode(np.exp(spoken("left")), LABELS)
        for shaped in (spoken("left")[:, :4], spoken("left")[0], spoken("left")[None]):
            with pytest.raises(ConfigError, match=r"must be \(frames, 5\), not"):
                decode(shaped, LABELS)
        with pytest.raises(ConfigError, match=BLANK):
            decode(spoken("left"), ("a", "b", "c", "d", "e"))
    for setting in ({"beam": 0}, {"threshold": 1.5}, {"weight": -1.0}, {"threshold": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            beam_search(spoken("left"), LABELS, **setting)
    with pytest.raises(ConfigError, match="uses up, not among"):
        beam_search(spoken("left"), LABELS, grammar=Grammar.parse("left up", ("left", "up")))


def test_ten_minutes_take_seconds() -> None:
    labels = (*(f"word{i}" for i in range(23)), FILLER, BLANK)
    generator = np.random.default_rng(8)
    logits = generator.standard_normal((15000, len(labels)))
    logits[:, -1] += 10
    said = generator.integers(0, 23, 300)
    logits[25 + 50 * np.arange(300), said] += 20
    rules = Grammar.parse(f"({' | '.join(labels[:23])})+", labels[:23])
    model = NGram.train([], labels[:23])
    begun = time.process_time()
    spans = beam_search(log_softmax(logits), labels, grammar=rules, language_model=model, threshold=0.5)
    assert time.process_time() - begun < 10  # of CPU; 1 s on an idle core
    assert words(spans) == [labels[token] for token in said]
