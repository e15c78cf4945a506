"""Take what a loudspeaker plays out of a microphone's audio."""

import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from speech.errors import AudioError, DeviceError
from speech.sound.files import Block

RATE_HZ = 16000
HOP = 512
"""Samples that are filtered at a time: 32 ms."""
ECHO_S = 0.32
"""Length of the filter: reverberation, after the delay."""
WINDOW = 2 * RATE_HZ
"""Samples that are compared to find the delay; half of it is the longest delay that is found."""
LEAD_S, REACH_S = 0.03, 0.15
"""A delay is found anew when it lies outside this range around the one in use."""
PEAK = 12.0
"""How far the correlation at the delay must exceed its root mean square."""
MEMORY = 0.9995
"""Share of the state that stays after each `HOP`; the rest is what a changing room makes uncertain."""
SMOOTHING = 0.9
"""Share of the earlier estimate in the power of what is not echo."""
BANDS = slice(6, 64), slice(64, 256)
"""Frequencies from 94 to 1000 and to 4000 Hz; the one in which the echo is weaker counts."""
DECAY, LEARN = 0.9, 0.02
"""For each `HOP`: decay of the power that was played; change of the share of it that is left, towards its median."""
LEAST_PLAYED = 0.5
"""Power of a band, as of -60 dB relative to full scale, from which on that share is learnt."""
RESIDUAL, LEAST_LEVEL = 4.0, 0.03
"""What is left is made quieter, at most to this share, where it is no more than so many times the expected residual."""
CONSTRAINED = 4
"""One in so many partitions is made causal again after each `HOP`, as that takes most of the time."""
WAIT_S = 0.1
"""Longest wait for the reference to a block."""

Spectra = NDArray[np.complex64]


class EchoCanceller:
    """Filters a microphone's audio before the Listener.

        for block, reference in ...:
            listener.feed(canceller.filter(block, reference=reference))

    An adaptive filter in partitions of the frequency domain, whose step is a Kalman gain: it keeps still while somebody
    speaks, because then the error is not echo.  Where hardly more is left than the filter expects to miss, that is made
    quiet.  The delay between both is found by correlation, once a second.

    Source: Kuech, Mabande, Enzner: State-space architecture of the partitioned-block-based acoustic echo controller,
    ICASSP 2014, with a diagonal state covariance; Knapp, Carter: The generalized correlation method for estimation of
    time delay, 1976 (phase transform).
    """

    def __init__(self) -> None:
        self._rest, self._n_hops = np.zeros((2, 0), np.float32), 0
        self._past = np.zeros((2, WINDOW), np.float32)  # heard, played
        self._likeness: Spectra = np.zeros(WINDOW + 1, np.complex64)
        self._delay, self._candidate = 0, -1
        self._begin()

    def _begin(self) -> None:
        n_partitions, n_bins = round(ECHO_S * RATE_HZ / HOP), HOP + 1
        self._played: Spectra = np.zeros((n_partitions, n_bins), np.complex64)
        self._filter: Spectra = np.zeros_like(self._played)
        late = np.arange(n_partitions, dtype=np.float32) / n_partitions
        self._uncertainty = np.repeat(np.exp(-2 * late)[:, None], n_bins, 1)
        self._other_power = np.full(n_bins, 1e-3, np.float32)
        self._last, self._level = np.zeros(HOP, np.float32), 1.0
        self._reverberant, self._leak = np.zeros(len(BANDS)), np.full(len(BANDS), 1e-3)

    def filter(self, block: Block, reference: Block) -> Block:
        """Remove the reference from a block.

        Args:
            block: (time,) of the microphone, at 16 kHz.
            reference: (time,) what was played meanwhile, or up to a second before.
        Returns:
            (about the same time,): less than 32 ms stay behind until the next block.
        Raises:
            AudioError: the lengths differ.
        """
        if len(block) != len(reference):
            raise AudioError(f"{len(reference)} samples of reference for {len(block)} of audio")
        both = np.concatenate([self._rest, np.stack([block, reference])], 1)
        n_whole = both.shape[1] // HOP * HOP
        self._rest = both[:, n_whole:]
        done = [np.zeros(0, np.float32)]
        for begin in range(0, n_whole, HOP):
            self._past = np.concatenate([self._past[:, HOP:], both[:, begin : begin + HOP]], 1)
            self._n_hops += 1
            if self._n_hops % (RATE_HZ // HOP) == 0:
                self._find_delay()
            at = WINDOW - self._delay
            done.append(self._hop(self._past[0, -HOP:], self._past[1, at - HOP : at]))
        return np.concatenate(done)

    def _find_delay(self) -> None:
        heard, played = np.fft.rfft(self._past, 2 * WINDOW)
        likeness = heard * played.conj()
        self._likeness = 0.7 * self._likeness + likeness / (np.abs(likeness) + 1e-9)
        correlation = np.abs(np.fft.irfft(self._likeness))
        peak = correlation[: WINDOW // 2].max()
        delay = int(
            np.argmax(correlation > peak / 2)
        )  # the first that is strong, as the direct sound may not be loudest
        is_clear = peak > PEAK * np.sqrt(np.square(correlation).mean())
        is_same = abs(delay - self._candidate) < LEAD_S * RATE_HZ
        self._candidate = delay if is_clear else -1
        behind_s = (delay - self._delay) / RATE_HZ
        if is_clear and is_same and not 0 <= behind_s <= REACH_S:
            self._delay = max(0, delay - round(LEAD_S * RATE_HZ))
            self._begin()

    def _hop(self, heard: Block, played: Block) -> Block:
        """(HOP,), (HOP,) -> (HOP,)"""
        self._played = np.roll(self._played, 1, 0)
        self._played[0] = np.fft.rfft(np.concatenate([self._last, played]))
        self._last = played
        echo = np.fft.irfft((self._filter * self._played).sum(0))[HOP:]
        rest: Block = (heard - echo).astype(np.float32)
        error = np.fft.rfft(np.concatenate([np.zeros(HOP, np.float32), rest]))
        self._other_power += (1 - SMOOTHING) * (np.abs(error) ** 2 - self._other_power)
        power = np.abs(self._played) ** 2
        residual = (power * self._uncertainty).sum(0)
        gain = self._uncertainty / (residual + 2 * self._other_power + 1e-10)
        self._filter += gain * self._played.conj() * error
        some = slice(self._n_hops % CONSTRAINED, None, CONSTRAINED)
        taps = np.fft.irfft(self._filter[some], axis=1)
        taps[:, HOP:] = 0
        self._filter[some] = np.fft.rfft(taps, axis=1)
        self._filter *= MEMORY
        kept = np.maximum(1 - gain * power / 2, 0) * self._uncertainty
        self._uncertainty = MEMORY**2 * kept + (1 - MEMORY**2) * np.abs(self._filter) ** 2
        self._reverberant = np.maximum(DECAY * self._reverberant, in_bands(power[0]))
        left = in_bands(np.abs(error) ** 2)
        expected = np.maximum(in_bands(residual), self._leak * self._reverberant)
        change = np.where(left > self._leak * self._reverberant, 1 + LEARN, 1 - LEARN)
        self._leak *= np.where(self._reverberant > LEAST_PLAYED, change, 1)
        other = float((1 - RESIDUAL * expected / (left + 1e-10)).max())
        before, self._level = self._level, max(LEAST_LEVEL, other)
        return rest * np.linspace(before, self._level, HOP, dtype=np.float32)


def in_bands(power: NDArray[np.floating]) -> NDArray[np.floating]:
    """(bins,) -> (bands,)"""
    return np.array([power[band].sum() for band in BANDS])


class Playback:
    """What the default output plays, from its monitor: PulseAudio, or PipeWire in its place.

    Raises:
        DeviceError: `parec` is missing.
    """

    def __init__(self) -> None:
        if not shutil.which("parec"):
            raise DeviceError("cancelling echo needs parec, of PulseAudio or PipeWire (Debian: pulseaudio-utils)")
        self._process: subprocess.Popen[bytes] | None = None
        self._samples, self._arrived = bytearray(), threading.Condition()
        self._is_aligned, self._n_owed = False, 0

    def take(self, n_samples: int) -> Block:
        """The next samples (time,); zeros in place of those that do not come in time, and are then left out."""
        if not self._process:
            self._start()
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._samples) >= 2 * (self._n_owed + n_samples), WAIT_S)
            if not self._is_aligned:
                if len(self._samples) < 2 * n_samples:
                    return np.zeros(n_samples, np.float32)  # it has not begun
                del self._samples[: -2 * n_samples]  # the newest belong to this block
                self._is_aligned, self._n_owed = True, 0
            n_left_out = min(self._n_owed, len(self._samples) // 2)
            del self._samples[: 2 * n_left_out]
            data = bytes(self._samples[: 2 * n_samples])
            del self._samples[: len(data)]
            self._n_owed += n_samples - len(data) // 2 - n_left_out
            self._is_aligned = max(self._n_owed, len(self._samples) // 2) < RATE_HZ / 2
        return np.pad(np.frombuffer(data, "<i2").astype(np.float32) / 32768, (0, n_samples - len(data) // 2))

    def close(self) -> None:
        """Stop; `take` begins anew."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()

    def _start(self) -> None:
        command = [
            "parec",
            "--device=@DEFAULT_MONITOR@",
            "--raw",
            "--format=s16le",
            f"--rate={RATE_HZ}",
            "--channels=1",
        ]
        process = subprocess.Popen([*command, "--latency-msec=20"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._process, self._is_aligned, self._samples = process, False, bytearray()
        threading.Thread(target=self._read, args=[process, self._samples], daemon=True).start()

    def _read(self, process: "subprocess.Popen[bytes]", samples: bytearray) -> None:
        assert process.stdout
        with process.stdout as pipe:
            while data := pipe.read(RATE_HZ // 50 * 2):  # 20 ms
                with self._arrived:
                    samples += data
                    del samples[: -20 * RATE_HZ]  # the last ten seconds
                    self._arrived.notify_all()
        process.wait()


def without_echo(blocks: Iterable[Block], playback: Playback) -> Iterator[Block]:
    """Filter a microphone's blocks at 16 kHz; the reference is taken anew after each time without the device."""
    canceller = EchoCanceller()
    try:
        for block in blocks:
            if len(block):
                yield canceller.filter(block, playback.take(len(block)))
            else:
                playback.close()
                yield block
    finally:
        playback.close()
