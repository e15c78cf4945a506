"""Reduce several channels to one: the best channel, a given one, or the mean."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speech.errors import ConfigError
from speech.sound.files import Block, as_mono

Channel = int | Literal["best", "mix"]
"""A channel number from 1 on; `"best"`: the one with the clearest speech; `"mix"`: the mean of all."""

FLOOR_DB = -90.0
"""Level below which a channel counts as digitally silent, in dB relative to full scale."""
MEMORY_S = 10.0
"""Time over which a channel's noise floor is estimated: the level of its quietest tenth."""
DECAY_DB_PER_S = 0.5
"""Decay of a channel's peak level."""
ENOUGH_DB = 30.0
"""Peaks further above the noise floor do not count as better."""
SILENT_LOSS_DB = 12.0
"""Penalty for a channel that is digitally silent at times: microphone arrays have one with the audio being played."""
FLOOR_BLOCKS = 25
"""The noise floor is computed anew after this many blocks, as that takes most of the time."""
MARGIN_DB = 6.0
"""How much better another channel must be before it is chosen."""


def parse(text: str) -> Channel:
    """Parse `best`, `mix`, `left`, `right` or a number from 1 on.  Raises ConfigError for another text."""
    named: dict[str, Channel] = {"best": "best", "mix": "mix", "left": 1, "right": 2}
    name = text.strip().lower()
    if name in named:
        return named[name]
    return check(int(name) if name.isascii() and name.isdigit() else text)


def check(channel: object) -> Channel:
    """Return `channel`; raises ConfigError if it is not valid."""
    if channel == "best" or channel == "mix" or (type(channel) is int and channel >= 1):
        return channel
    raise ConfigError(f"channel={channel!r} must be left, right, best, mix or a number from 1 on")


class ChannelSelector:
    """Reduces blocks of several channels to one channel.

    `"best"` chooses the channel whose peaks are furthest above its own noise floor: a hissing channel has a high floor,
    a dead one has no peaks.  Until somebody speaks, the quietest channel that is not digitally silent is chosen.

    Args:
        channel: see `Channel`.
        block_s: length of the blocks in seconds.
    """

    def __init__(self, channel: Channel, block_s: float) -> None:
        self._channel, self._block_s, self._n_blocks = check(channel), block_s, 0
        self._powers = np.zeros((round(MEMORY_S / block_s), 0))  # (blocks, channels) in dB, the oldest is replaced
        self.current = 0
        """Index of the chosen channel, for `"best"`."""

    def push(self, samples: NDArray[np.float32]) -> Block:
        """(time, channels) -> (time,)"""
        if samples.ndim == 1 or samples.shape[1] == 1 or self._channel == "mix":
            return as_mono(samples)
        if self._channel != "best":
            return as_mono(samples[:, self._channel - 1])
        before = self.current
        self.current = self._best(samples)
        if before == self.current or self._n_blocks == 1:
            return as_mono(samples[:, self.current])
        rise = np.linspace(0, 1, len(samples), dtype=np.float32)  # a cross-fade avoids a click
        return as_mono(samples[:, before] * (1 - rise) + samples[:, self.current] * rise)

    def _best(self, samples: NDArray[np.float32]) -> int:
        shifted = samples - samples[0]  # np.var takes five times as long as these sums
        power = (
            np.einsum("ij,ij->j", shifted, shifted) / len(samples) - (np.einsum("ij->j", shifted) / len(samples)) ** 2
        )
        power_db = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))
        n_kept = len(self._powers)
        if not self._n_blocks:
            self._powers = np.zeros((n_kept, len(power_db)))
            self._before = self._peak = power_db
        lasting = np.minimum(power_db, self._before)  # a click is not a peak
        self._peak = np.maximum(self._peak - DECAY_DB_PER_S * self._block_s, lasting)
        self._powers[self._n_blocks % n_kept] = self._before = power_db
        self._n_blocks += 1
        if self._n_blocks < n_kept / 10 or self._n_blocks % FLOOR_BLOCKS == 0:  # the floor changes slowly
            self._floor = np.quantile(self._powers[: self._n_blocks], 0.1, axis=0)
        is_silent = self._floor <= FLOOR_DB
        clarity = self._peak - self._floor
        merit = np.minimum(clarity, ENOUGH_DB) - SILENT_LOSS_DB * is_silent
        if clarity.max() < MARGIN_DB:  # nobody has spoken yet
            merit = np.where(is_silent, -np.inf, -self._floor) if not is_silent.all() else 0 * self._floor
        best = int(merit.argmax())
        return best if merit[best] > merit[self.current] + MARGIN_DB else self.current
