"""Measure cost and endurance of the server: `python -m recipes.protocols.clients`.  Linux only: it reads /proc.

It starts `speech.serve page` and connects real WebSocket clients, which send the demo recording: one client in real
time for the latency; many at once for words, processor and memory; and a long stream.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect

from speech.errors import ConfigError, exit_status
from speech.listen import DEMO
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.soak import DEVICE_HZ, PERIOD_S, period
from speech.sound.files import pcm, read

CHUNK_S = 0.02
SOAK_CHUNK_S = 0.1
MOST_MB = 5.0
"""Limit of the memory growth by a long stream."""
MOST_MS = 50.0
"""Limit of the latency that the server adds."""


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    text: str
    is_within: bool = True
    """Whether the limit that the text names is kept."""

    def __str__(self) -> str:
        return self.text if self.is_within else f"FAILED: {self.text}"


@dataclass(frozen=True)
class Served:
    """A running server."""

    process_id: int
    address: str
    """host:port"""

    @property
    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process_id}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @property
    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def client(self) -> connect:
        return connect(f"ws://{self.address}/socket", compression=None, max_size=None, ping_interval=None)


@contextmanager
def served(model: str | None, max_clients: int) -> Iterator[Served]:
    """Start a server in a separate process, without the user's own words.  Raises ConfigError if it does not start."""
    command = [sys.executable, "-m", "speech.serve", "page", "--port", "0", "--max-clients", str(max_clients)]
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen(
            command + (["--model", model] if model else []),
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_DATA_HOME": empty, "XDG_CONFIG_HOME": empty},
        )
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://([^/]+)/", line)
            if not found:
                raise ConfigError(f"the server did not start: {line.strip()}")
            yield Served(process.pid, found[1])
        finally:
            process.terminate()
            process.wait()


async def begin(socket: ClientConnection) -> None:
    await socket.recv()
    await socket.send(json.dumps({"type": "start", "rate_hz": DEVICE_HZ}))
    await socket.recv()


async def speak(socket: ClientConnection, audio: bytes) -> None:
    """Send a recording in real time: each chunk when its last sample would have been recorded."""
    size, begun = 2 * round(CHUNK_S * DEVICE_HZ), time.monotonic()
    for n, place in enumerate(range(0, len(audio), size), 1):
        await asyncio.sleep(max(0.0, begun + n * CHUNK_S - time.monotonic()))
        await socket.send(audio[place : place + size])
    await socket.send(json.dumps({"type": "stop"}))


async def send_all(server: Served, audio: bytes) -> list[float]:
    """Send a recording; return when each detection arrives, in seconds since the first sample was recorded."""
    arrived: list[float] = []
    async with server.client() as socket:
        await begin(socket)
        begun = time.monotonic()
        speaking = asyncio.create_task(speak(socket, audio))
        async for message in socket:
            event = json.loads(message)
            if event["type"] == "stopped":
                break
            if event["type"] == "detection":
                arrived.append(time.monotonic() - begun)
        await speaking
    return arrived


async def soak(server: Served, hours: float) -> float:
    """Memory growth in MB by a stream at full speed, after its first period."""
    audio = pcm(period(seed=0))
    size, before_mb = 2 * round(SOAK_CHUNK_S * DEVICE_HZ), 0.0

    async def read_events(socket: ClientConnection) -> None:
        async for message in socket:
            if json.loads(message)["type"] == "stopped":
                return

    async with server.client() as socket:
        await begin(socket)
        reading = asyncio.create_task(read_events(socket))
        for number in tqdm(range(round(hours * 3600 / PERIOD_S)), unit="period", disable=None):
            for place in range(0, len(audio), size):
                await socket.send(audio[place : place + size])
            before_mb = server.memory_mb if number == 0 else before_mb
        await socket.send(json.dumps({"type": "stop"}))
        await reading
    return server.memory_mb - before_mb


async def measure(server: Served, model: str | None, n_clients: int, hours: float) -> list[Figure]:
    recognizer, audio = Recognizer.load(model), pcm(read(DEMO, DEVICE_HZ))
    decided = [d.at_s for d in Listener(recognizer).listen([read(DEMO, recognizer.info.sample_rate_hz)])]
    arrived = await send_all(server, audio)
    if len(arrived) != len(decided):
        raise ConfigError(f"{len(arrived)} words over the socket, {len(decided)} from the file")
    added_ms = [1000 * (over - alone) for over, alone in zip(arrived, decided, strict=True)]
    quiet_mb, cpu_s, begun = server.memory_mb, server.cpu_s, time.monotonic()
    n_words = sum(map(len, await asyncio.gather(*(send_all(server, audio) for _ in range(n_clients)))))
    cpu, mb = (server.cpu_s - cpu_s) / (time.monotonic() - begun), server.memory_mb - quiet_mb
    expected = n_clients * len(decided)
    figures = [
        Figure(f"latency added by the socket: median {np.median(added_ms):.0f} ms, at most {max(added_ms):.0f} ms "
               f"(limit {MOST_MS:g} ms)", max(added_ms) <= MOST_MS),
        Figure(f"{n_clients} clients at once: {n_words} of {expected} words", n_words == expected),
        Figure(f"each costs {100 * cpu / n_clients:.1f} % of a core and {mb / n_clients:.1f} MB"),
    ]  # fmt: skip
    if hours:
        more_mb = await soak(server, hours)
        text = f"{hours:g} h of audio at full speed: {more_mb:+.1f} MB (limit {MOST_MB:g} MB)"
        figures.append(Figure(text, more_mb <= MOST_MB))
    return figures


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all limits are kept, 1 if not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m recipes.protocols.clients", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="clients at once (default: 16)")
    parser.add_argument("--hours", type=float, default=0.0, help="length of the long stream (default: none)")
    parser.add_argument("--model", metavar="PATH", help="bundle to use (default: the shipped one)")
    arguments = parser.parse_args(argv)
    if arguments.clients < 1 or arguments.hours < 0:
        parser.error("--clients must be positive and --hours not negative")

    def run() -> int:
        with served(arguments.model, 2 * arguments.clients) as server:
            figures = asyncio.run(measure(server, arguments.model, arguments.clients, arguments.hours))
        print("\n".join(map(str, figures)))
        return int(not all(figure.is_within for figure in figures))

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
