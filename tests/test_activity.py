"""High-pass, gate, voice activity and endpointer, each against what it must do; and their settings."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
from scipy import signal
from scripted import LoudVoice, sound

from speech import segment
from speech.errors import ConfigError
from speech.listen import DEMO
from speech.segment import (
    HOP,
    HOP_S,
    Endpointer,
    EnergyGate,
    HighPass,
    ListenerConfig,
    Segmenter,
    Utterance,
    VoiceActivity,
    high_pass,
    hops_of,
    sound_bounds,
    utterances_of,
)

RATE = 16000
HOPS_OF_SPEECH = ListenerConfig(min_silence_s=3 * HOP_S)
LONGEST_S = 6 * HOP_S


def hops(waveform: np.ndarray) -> list[np.ndarray]:
    return list(waveform[: len(waveform) // HOP * HOP].reshape(-1, HOP))


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    samples, rate = soundfile.read(DEMO, dtype="float32")
    assert rate == RATE
    return samples


# High-pass


def test_the_high_pass_is_a_butterworth_filter(demo: np.ndarray) -> None:
    waveform = demo[:40_001] + np.float32(0.3)
    waveform[0] = 0.4
    sections = signal.butter(4, 100, "highpass", fs=RATE, output="sos")
    expected, _ = signal.sosfilt(sections, waveform, zi=waveform[0] * signal.sosfilt_zi(sections))
    filtered = high_pass(waveform)
    assert filtered.shape == waveform.shape
    assert filtered.dtype == np.float32
    np.testing.assert_allclose(filtered, expected, atol=1e-3 * np.abs(demo).max())


@pytest.mark.parametrize("constant", [0.5, -2.0])
def test_a_constant_vanishes_without_a_click(constant: float) -> None:
    assert np.abs(high_pass(np.full(4000, constant, np.float32))).max() < 1e-6 * abs(constant)


@pytest.mark.parametrize(("pitch_hz", "gain_db"), [(50, -24.1), (100, -3.0), (200, 0.0), (4000, 0.0)])
def test_hum_is_weakened_and_speech_is_not(pitch_hz: float, gain_db: float) -> None:
    wave = np.sin(2 * np.pi * pitch_hz * np.arange(RATE) / RATE).astype(np.float32)
    gain = np.std(high_pass(wave)[RATE // 2 :]) / np.std(wave)
    assert 20 * np.log10(gain) == pytest.approx(gain_db, abs=0.1)


def test_a_reset_high_pass_remembers_nothing(demo: np.ndarray) -> None:
    first, second = hops(demo)[30:32]
    used = HighPass()
    used.push(first)
    used.reset()
    np.testing.assert_array_equal(used.push(second), HighPass().push(second))


# Gate


def passes(gate: EnergyGate, *amplitudes: float) -> list[bool]:
    """Whether the gate is open in hops of a tone of these amplitudes."""
    tone = np.sin(2 * np.pi * np.arange(HOP) / 16).astype(np.float32)
    return [gate.push(np.float32(amplitude) * tone) for amplitude in amplitudes]


def db(level: float) -> float:
    """Amplitude of a sine with this power."""
    return float(np.sqrt(2) * 10 ** (level / 20))


@pytest.mark.parametrize(("raised_db", "is_open"), [(2.5, False), (3.5, True), (20, True)])
def test_the_gate_opens_for_what_stands_out(raised_db: float, is_open: bool) -> None:
    gate = EnergyGate()
    assert not any(passes(gate, *[db(-50)] * 100))
    assert passes(gate, db(-50 + raised_db)) == [is_open]


@pytest.mark.parametrize(("level_db", "is_open"), [(-76, False), (-74, True)])
def test_below_a_floor_nothing_stands_out(level_db: float, is_open: bool) -> None:
    assert passes(EnergyGate(), 0, db(level_db)) == [False, is_open]


def test_the_gate_is_held_open() -> None:
    assert passes(EnergyGate(), 0, 0.5, *[0] * 99) == [False] + [True] * 25 + [False] * 75


def test_noise_that_stays_is_the_new_quiet() -> None:
    """A tenth of two seconds, six hops, are the quietest that count; after that the sound is one of them."""
    opened = passes(EnergyGate(), *[db(-60)] * 100, *[db(-40)] * 100)
    assert opened == [False] * 100 + [True] * (55 + 24) + [False] * 21, "and the gate is held"


def test_a_reset_gate_remembers_nothing() -> None:
    gate = EnergyGate()
    passes(gate, 0, 0.5)
    gate.reset()
    assert passes(gate, 0.2, 0.5) == [False, True]


# Voice activity


def test_speech_is_distinguished_from_silence_and_noise(demo: np.ndarray) -> None:
    voice = VoiceActivity()
    in_demo = np.array([voice.push(hop) for hop in hops(demo)])
    assert ((in_demo >= 0) & (in_demo <= 1)).all()
    assert in_demo[: round(0.6 / HOP_S)].max() < 0.2, "before the first word"
    assert in_demo[round(0.8 / HOP_S) : round(1.0 / HOP_S)].min() > 0.8, "in it"
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    voice.reset()
    assert max(voice.push(hop) for hop in hops(noise)[10:]) < 0.3


def test_overdriven_samples_are_clipped(demo: np.ndarray) -> None:
    loud = [20 * hop for hop in hops(demo)[24:40]]
    one, other = VoiceActivity(), VoiceActivity()
    assert [one.push(hop) for hop in loud] == [other.push(np.clip(hop, -1, 1)) for hop in loud]


# Endpointer


@pytest.fixture
def two_hops_of_pre_roll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "PRE_ROLL_S", 2 * HOP_S)


@pytest.mark.usefixtures("two_hops_of_pre_roll")
@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [  # a hop each, in tenths; of each utterance: begin, start, end, closed, in hops
        ("", []),
        ("......", []),
        ("...666666...", []),  # below the 0.7 that opens
        ("...7...", [(1, 3, 4, 7)]),
        ("9...", [(0, 0, 1, 4)]),  # nothing came before
        (".9...", [(0, 1, 2, 5)]),
        ("...99...", [(1, 3, 5, 8)]),
        ("...99..", [(1, 3, 5, 7)]),  # the end of the stream ends it
        ("...99..9...", [(1, 3, 8, 11)]),  # two hops of silence do not
        ("...9443...", [(1, 3, 6, 9)]),  # 0.35 goes on with what 0.7 opens
        ("...944444...", [(1, 3, 9, 12)]),
        ("...999999...", [(1, 3, 9, 12)]),  # as long as one may be
        ("...99...99...", [(1, 3, 5, 8), (6, 8, 10, 13)]),
        ("...99...9...", [(1, 3, 5, 8), (6, 8, 9, 12)]),
    ],
)
def test_utterances_open_and_close(probabilities: str, expected: list[tuple[int, ...]]) -> None:
    found = utterances(probabilities, HOPS_OF_SPEECH)
    assert [places(u) for u in found] == expected
    for u in found:
        assert not u.is_long
        assert {int(value) for value in u.waveform} == set(range(u.begin // HOP, u.closed // HOP))
        assert len(u.waveform) == u.closed - u.begin


def utterances(probabilities: str, config: ListenerConfig) -> list[Utterance]:
    """Of hops with these probabilities in tenths, but 0.36, 0.34 and 0.69 for 4, 3 and 6; the n-th hop holds only n."""
    values = {"4": 0.36, "3": 0.34, "6": 0.69, ".": 0.0}
    endpointer = Endpointer(config, LONGEST_S)
    found = [
        endpointer.push(np.full(HOP, n, np.float32), values.get(letter, int(letter if letter != "." else 0) / 10))
        for n, letter in enumerate(probabilities)
    ]
    return [utterance for utterance in [*found, endpointer.finish()] if utterance]


def places(utterance: Utterance) -> tuple[int, ...]:
    """begin, start, end and closed in hops."""
    return tuple(place // HOP for place in (utterance.begin, utterance.start, utterance.end, utterance.closed))


@pytest.mark.usefixtures("two_hops_of_pre_roll")
@pytest.mark.parametrize("rest", ["", "9", "99..9...", "9" * 999])
def test_talk_is_returned_once_as_soon_as_it_is_too_long(rest: str) -> None:
    (long,) = utterances("...9999999" + rest, HOPS_OF_SPEECH)
    assert long.is_long
    assert places(long) == (1, 3, 10, 10)
    assert len(long.waveform) == 0


def test_an_utterance_knows_when_talk_ended_before_it() -> None:
    first, talk, second, third = utterances("9....9999999..99....9....9...", HOPS_OF_SPEECH)
    assert [u.is_long for u in (first, talk, second, third)] == [False, True, False, False]
    assert first.talk_end < -3600 * RATE
    assert second.talk_end == third.talk_end == 16 * HOP


def test_the_pre_roll_holds_nothing_of_the_utterance_before() -> None:
    first, second = utterances("...........99...9...", HOPS_OF_SPEECH)
    assert (places(first), places(second)) == ((2, 11, 13, 16), (13, 16, 17, 20))


def test_an_hour_of_talk_is_not_kept() -> None:
    endpointer = Endpointer(ListenerConfig(), 8.0)
    found = [endpointer.push(np.zeros(HOP, np.float32), 1.0) for _ in range(round(3600 / HOP_S))]
    assert [n for n, utterance in enumerate(found) if utterance] == [round(8.0 / HOP_S)]
    assert endpointer.is_open
    assert len(endpointer._recent) * HOP_S < 8.0 + 0.3 + 0.25 + 0.1
    assert endpointer.finish() is None


# The parts together


def test_a_silent_room_costs_nothing() -> None:
    segmenter = Segmenter(ListenerConfig(), 1.4, voice := LoudVoice())
    rng = np.random.default_rng(0)
    for hop in hops((1e-5 * rng.standard_normal(60 * RATE)).astype(np.float32)):  # -100 dB
        assert segmenter.push(hop) is None
    for hop in hops((1e-3 * rng.standard_normal(60 * RATE)).astype(np.float32)):  # steady noise, -60 dB
        assert segmenter.push(hop) is None
    assert voice.n_pushed < (0.3 + 2.0 + 0.8) / HOP_S, "pre-roll, while the noise is new, and while the gate is held"


def test_the_detector_first_hears_what_led_up_to_a_sound() -> None:
    voice = LoudVoice()
    segmenter = Segmenter(ListenerConfig(), 1.4, voice)
    stream = hops(sound((1.6, 0.0), (0.32, 1.0), (3.2, 0.0), (0.32, 1.0)))
    pushed = []
    for hop in stream:
        segmenter.push(hop)
        pushed.append(voice.n_pushed)
    asked = np.diff(pushed, prepend=0)
    assert asked[:50].sum() == 0
    assert asked[50] == 1 + 9, "0.3 s of pre-roll, then the sound"
    assert (asked[51 : 61 + 24] == 1).all(), "the gate is held for 0.8 s; the high-pass rings for a hop"
    assert asked[61 + 24 : 160].sum() == 0
    assert asked[160] == 1 + 9
    assert voice.n_resets == 2


def test_the_detector_hears_each_hop_once_and_nothing_of_the_stream_before() -> None:
    voice = LoudVoice()
    segmenter = Segmenter(ListenerConfig(), 1.4, voice)
    for hop in hops(sound((20 * HOP_S, 0.0), (4 * HOP_S, 1.0), (30 * HOP_S, 0.0), (4 * HOP_S, 1.0))):
        segmenter.push(hop)
    assert voice.n_pushed == 9 + 4 + 30 + 4, "the pre-roll and all from there on, though the gate shut in between"
    for hop in hops(sound((20 * HOP_S, 0.0))):
        segmenter.push(hop)
    segmenter.reset()
    before = voice.n_pushed
    for hop in hops(sound((2 * HOP_S, 0.0), (4 * HOP_S, 1.0))):
        segmenter.push(hop)
    assert voice.n_pushed - before == 2 + 4


def test_a_segmenter_that_is_reset_remembers_nothing() -> None:
    stream = hops(sound((0.64, 0.0), (0.32, 1.0), (0.64, 0.0)))
    segmenter = Segmenter(ListenerConfig(), 1.4, LoudVoice())

    def cut() -> list[tuple[int, ...]]:
        found = [segmenter.push(hop) for hop in stream]
        return [places(u) for u in found if u]

    first = cut()
    for hop in stream[:25]:
        segmenter.push(hop)
    assert segmenter.is_open
    segmenter.reset()
    assert not segmenter.is_open
    assert segmenter.finish() is None
    assert cut() == first == [(11, 20, 30, 38)]


def test_the_utterances_of_a_recording(demo: np.ndarray) -> None:
    found = utterances_of(demo, ListenerConfig(), 1.4)
    assert [u.is_long for u in found] == [False] * 10 + [True]
    for u in found[:-1]:
        np.testing.assert_array_equal(u.waveform, np.pad(high_pass(demo), (0, HOP))[u.begin : u.closed])
    (last,) = utterances_of(demo[: found[0].end], ListenerConfig(), 1.4)
    assert abs(last.end - found[0].end) <= HOP, "the end of the recording ends it"


@pytest.mark.parametrize("sizes", [(1, 2, 1000), (512, 512), (513, 1, 510), (0, 5), (3000,)])
def test_blocks_of_any_size_are_one_stream(sizes: tuple[int, ...]) -> None:
    stream = np.arange(sum(sizes), dtype=np.float32)
    cut = list(hops_of(np.split(stream, np.cumsum(sizes)[:-1])))
    assert {len(hop) for hop in cut} == {HOP}
    np.testing.assert_array_equal(np.concatenate(cut), np.pad(stream, (0, -len(stream) % HOP)))


# Bounds of a word


def uttered(
    *pieces: tuple[float, float], margins_s: tuple[float, float] = (0.3, 0.256), noise: float = 1e-4
) -> Utterance:
    """Speech made of tones (seconds, amplitude) with margins, and noise of that level over all."""
    speech = np.concatenate(
        [amplitude * np.sin(2 * np.pi * 2000 * np.arange(round(s * RATE)) / RATE) for s, amplitude in pieces]
    )
    before, after = (round(s * RATE) for s in margins_s)
    waveform = np.pad(speech, (before, after))
    waveform += noise * np.random.default_rng(0).standard_normal(len(waveform))
    end = before + len(speech)
    return Utterance(waveform.astype(np.float32), 0, before, end, end + after, False)


def bounds_s(utterance: Utterance) -> tuple[float, float]:
    first, last = sound_bounds(utterance)
    return first / RATE, last / RATE


def test_bounds_keep_the_closure_of_a_plosive() -> None:
    word = uttered((0.3, 0.5), (0.08, 0.0), (0.05, 0.1))
    assert bounds_s(word) == pytest.approx((0.3, 0.73), abs=0.03)


@pytest.mark.parametrize("noise", [1e-4, 0.01, 0.05])
def test_bounds_come_from_the_sound_and_not_from_the_hops(noise: float) -> None:
    word = uttered((0.3, 0.5), noise=noise)
    rough = replace(word, start=word.start + 2 * HOP, end=word.end - 2 * HOP)
    assert bounds_s(rough) == pytest.approx((0.3, 0.6), abs=0.025)


@pytest.mark.parametrize("other", [0.02, 0.008])
def test_sounds_far_from_the_speech_or_weak_are_not_its_bounds(other: float) -> None:
    """4 % of the peak counts as sound, 1.6 % does not; but no further than 0.128 s from the speech."""
    word = uttered((0.2, other), (0.3, 0.5), (0.2, other), margins_s=(0.1, 0.1))
    inner = replace(word, start=round(0.3 * RATE), end=round(0.6 * RATE))
    reach_s = 0.128 if other == 0.02 else 0.0
    assert bounds_s(inner) == pytest.approx((0.3 - reach_s, 0.6 + reach_s), abs=0.025)


def test_a_sound_that_is_all_noise_lasts_as_long_as_the_speech() -> None:
    utterance = uttered((0.3, 0.0), noise=0.1)
    assert sound_bounds(utterance) == (utterance.start, utterance.end)


# Settings


LENGTHS = ("min_silence_s", "max_word_s", "max_sequence_s")
TIMES = ("after_talk_s", "wake_for_s")


@pytest.mark.parametrize(
    ("field", "value"),
    [*((f, v) for f in LENGTHS for v in (0.03, 61.0)), *((f, v) for f in TIMES for v in (-0.1, 3601.0, float("nan")))],
)
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        ListenerConfig(**{field: value})


def test_settings_at_the_ends_of_their_ranges_are_taken() -> None:
    for length_s, time_s in ((HOP_S, 0), (60.0, 3600)):
        config = ListenerConfig(**dict.fromkeys(LENGTHS, length_s), **dict.fromkeys(TIMES, time_s))
        assert set(asdict(config)) == {*LENGTHS, *TIMES}
