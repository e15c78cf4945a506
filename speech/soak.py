"""Play a day of audio through the live path in a few minutes: `python -m speech.soak`.

Each period lasts ten minutes: faint room noise, the demo recording twice, and two minutes of speech without a pause.
It comes as from a device with two channels, one of which hisses, and takes the way through `Microphone`, the streaming
resampler and the Listener; only the process in which PortAudio records is left out.  The report says whether every
period gave the same detections at the same times, how much memory grew after the first period, and how much processor
time a second of audio takes, in quiet and during speech.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from speech.bundle import LONGEST_S
from speech.console import DEMO, Console, Parser, run_program
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.results import Detection
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, utterances_of
from speech.sound.devices import BLOCK_S, Captured, InputDevice
from speech.sound.files import Block, read, resample_stream
from speech.sound.microphone import Microphone

DEVICE_HZ = 44100
PERIOD_S = 600
DEMO_AT_S, DEMO_S = (60, 400), 18
"""Where the demo recording begins in a period, in seconds, and its greatest length."""
TALK_S = (200, 320)
"""Begin and end of the speech without a pause, in seconds of a period."""
DEVICE = InputDevice(0, "soak", "none", 2, DEVICE_HZ, True)
HISS = 0.003
"""RMS level of the other channel."""
MOST_HOURS = 24.0 * 365
MORE_MB = 5.0
"""Largest growth of memory after the first period that passes."""
SAME_S = 0.05
"""Largest displacement of a detection from its time in the first period, in seconds."""


@dataclass(frozen=True)
class Report:
    """Result of the run."""

    hours: float
    heard_hours: float
    """Hours of audio that the listener counted."""
    words_per_period: int
    differing_periods: int
    """Periods with other words than the first, or with a word displaced by more than `SAME_S`."""
    more_mb: float
    """Growth of peak memory after the first period."""
    cpu_quiet: float
    """Processor seconds per second of audio while nothing is said, from the captured block on."""
    cpu_talk: float
    """The same during the speech without a pause."""

    @property
    def passed(self) -> bool:
        drift_s = abs(self.hours - self.heard_hours) * 3600
        return not self.differing_periods and self.more_mb <= MORE_MB and drift_s < 1 and self.words_per_period > 0

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.hours:g} h of audio, {self.heard_hours:.4f} h counted by the listener",
                f"{self.words_per_period} detections every {PERIOD_S // 60} min, "
                f"{self.differing_periods} periods differ",
                f"memory after the first {PERIOD_S // 60} min: {self.more_mb:+.1f} MB",
                f"processor: {100 * self.cpu_quiet:.2f} % of a core while nothing is said, "
                f"{100 * self.cpu_talk:.2f} % while somebody talks",
                "passed" if self.passed else "FAILED",
            ]
        )


def sentence() -> Block:
    """The longest utterance of the demo recording, (time,) at `DEVICE_HZ`."""
    found = utterances_of(read(DEMO, SAMPLE_RATE_HZ), ListenerConfig(), LONGEST_S)
    longest = max(found, key=lambda utterance: utterance.end - utterance.start)
    begin, end = (place * DEVICE_HZ // SAMPLE_RATE_HZ for place in (longest.start, longest.end))
    return read(DEMO, DEVICE_HZ)[begin:end]


def period(seed: int) -> Block:
    """One period, (time,) at `DEVICE_HZ`: faint noise, the demo recording twice, two minutes of speech."""
    rng = np.random.default_rng(seed)
    audio = (1e-4 * rng.standard_normal(PERIOD_S * DEVICE_HZ)).astype(np.float32)
    demo = read(DEMO, DEVICE_HZ)
    for at in DEMO_AT_S:
        audio[at * DEVICE_HZ :][: len(demo)] += demo
    begin, end = (at * DEVICE_HZ for at in TALK_S)
    audio[begin:end] += np.resize(sentence(), end - begin)
    return audio


def peak_mb() -> float:
    """Peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Soak:
    """Feeds a listener and measures processor time by kind of audio."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        audio = period(seed=0)
        hiss = HISS * np.random.default_rng(1).standard_normal(len(audio), np.float32)
        self.samples, self.kind = np.stack([hiss, audio], 1), "quiet"
        self.cpu_s = dict.fromkeys(("quiet", "words", "talk"), 0.0)
        self.audio_s = dict.fromkeys(self.cpu_s, 0.0)

    def run(self, n_periods: int) -> Report:
        rate_hz = self.listener.recognizer.info.sample_rate_hz
        found: list[list[Detection]] = [[] for _ in range(n_periods)]
        memory_mb = 0.0
        mono = Microphone().reduced(self._captured(n_periods), DEVICE)
        begun_s = time.process_time()
        for block in resample_stream(mono, DEVICE_HZ, rate_hz):
            for detection in self.listener.feed(block):
                found[int(detection.start_s // PERIOD_S)].append(detection)
            now_s = time.process_time()
            self.cpu_s[self.kind] += now_s - begun_s
            begun_s = now_s
            if not memory_mb and self.listener.heard_s >= PERIOD_S - 1:
                memory_mb = peak_mb()
        return Report(
            n_periods * PERIOD_S / 3600,
            self.listener.heard_s / 3600,
            len(found[0]),
            sum(differs(found[0], later, n * PERIOD_S) for n, later in enumerate(found)),
            peak_mb() - memory_mb,
            *(self.cpu_s[kind] / self.audio_s[kind] for kind in ("quiet", "talk")),
        )

    def _captured(self, n_periods: int) -> Iterator[Captured]:
        size, n_frames = round(BLOCK_S * DEVICE_HZ), 0
        for _ in tqdm(range(n_periods), unit="period", disable=None, leave=False):
            for begin in range(0, len(self.samples), size):
                self.kind = kind_at(begin / DEVICE_HZ)
                samples = self.samples[begin : begin + size]
                n_frames += len(samples)
                self.audio_s[self.kind] += len(samples) / DEVICE_HZ
                yield Captured(n_frames / DEVICE_HZ, n_frames, 0, 2, samples.tobytes())


def kind_at(second: float) -> str:
    """Kind of audio at a second of a period: quiet, words or talk."""
    if TALK_S[0] <= second < TALK_S[1]:
        return "talk"
    return "words" if any(at <= second < at + DEMO_S for at in DEMO_AT_S) else "quiet"


def differs(first: Sequence[Detection], later: Sequence[Detection], later_s: float) -> bool:
    """Whether the detections of a period are not those of the first, `later_s` later."""
    shifts_s = [b.start_s - a.start_s - later_s for a, b in zip(first, later, strict=False)]
    return [d.word for d in first] != [d.word for d in later] or any(abs(shift_s) > SAME_S for shift_s in shifts_s)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on wrong usage."""
    parser = Parser(prog="python -m speech.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=24.0, help="hours of audio (default: 24)")
    parser.add_argument("--model", metavar="PATH", help="bundle to use (default: the shipped one)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(argv)
    if not 2 * PERIOD_S / 3600 <= arguments.hours <= MOST_HOURS:
        parser.error(f"--hours must lie in {2 * PERIOD_S / 3600:.2f}..{MOST_HOURS:g}")
    return arguments


def run(arguments: argparse.Namespace, _: Console) -> int:
    """Returns 0: passed; 1: failed."""
    listener = Listener(Recognizer.load(arguments.model))
    report = Soak(listener).run(int(arguments.hours * 3600 / PERIOD_S))
    print(json.dumps(asdict(report)) if arguments.json else report)
    return int(not report.passed)


main = partial(run_program, parse, run, interrupted="interrupted")

if __name__ == "__main__":
    sys.exit(main())
