"""Measure cost and endurance of the server: `python -m recipes.protocols.clients`.  Linux only: it reads /proc.

It starts `speech.serve page` and connects real WebSocket clients, which send the demo recording: one client in real
time for the latency; many at once for words, processor and memory; unfinished connections; and a long stream.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect

from speech.errors import ConfigError
from speech.listen import DEMO
from speech.listener import Listener
from speech.recognizer import Recognizer
from speech.soak import DEVICE_HZ, PERIOD_S, period
from speech.sound.files import Block, read

CHUNK_S = 0.02
SOAK_CHUNK_S = 0.1
N_HALF = 1000
"""Simultaneous connections that send half a handshake."""
ROUNDS = 3
MORE_MB = 5.0
"""Limit of the memory growth by a long stream or by unfinished connections."""
MORE_MS = 50.0
"""Limit of the latency that the server adds."""


@dataclass(frozen=True)
class Report:
    """The measurements."""

    added_ms: float
    """Added latency: from the decision on the same audio in a file to the event at a client; median."""
    added_most_ms: float
    """The same; maximum."""
    n_clients: int
    words: int
    """Words reported to all clients together."""
    words_expected: int
    cpu_per_client: float
    """Share of one processor core per client, with the demo sent in real time."""
    mb_per_client: float
    half_mb: float
    """Memory growth from the first to the last of `ROUNDS` rounds of `N_HALF` unfinished connections."""
    soak_hours: float
    soak_mb: float
    """Memory growth by a stream of `soak_hours` after its first period."""

    @property
    def passed(self) -> bool:
        return (
            self.added_most_ms <= MORE_MS
            and self.words == self.words_expected
            and max(self.half_mb, self.soak_mb) <= MORE_MB
        )

    def __str__(self) -> str:
        lines = [
            f"latency added by the socket: median {self.added_ms:.0f} ms, at most {self.added_most_ms:.0f} ms",
            f"{self.n_clients} clients at once: {self.words} of {self.words_expected} words; "
            f"{100 * self.cpu_per_client:.1f} % of a core and {self.mb_per_client:.1f} MB for each",
            f"memory growth over {ROUNDS} rounds of {N_HALF} unfinished connections: {self.half_mb:+.1f} MB",
        ]
        if self.soak_hours:
            lines.append(f"memory growth over {self.soak_hours:g} h of audio at full speed: {self.soak_mb:+.1f} MB")
        return "\n".join([*lines, "passed" if self.passed else "FAILED"])


@dataclass(frozen=True)
class Served:
    """A running server."""

    process_id: int
    address: str
    """host:port"""

    @property
    def memory_mb(self) -> float:
        """Resident memory now."""
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
    """Start a server in a separate process.  Raises ConfigError if it does not start."""
    command = [sys.executable, "-m", "speech.serve", "page", "--port", "0", "--max-clients", str(max_clients)]
    process = subprocess.Popen(command + (["--model", model] if model else []), stderr=subprocess.PIPE, text=True)
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


def pcm(audio: Block) -> bytes:
    return (32767 * np.clip(audio, -1, 1)).astype("<i2").tobytes()


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


async def hear(server: Served, audio: bytes) -> list[float]:
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


async def leave_unfinished(server: Served) -> None:
    """Open connections that send half a handshake and wait until the server closes them."""
    host, _, port = server.address.rpartition(":")

    async def half() -> None:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /socket HTTP/1.1\r\nHost:")
            await reader.read()
            writer.close()

    await asyncio.gather(*(half() for _ in range(N_HALF)))


async def soak(server: Served, hours: float) -> float:
    """Memory growth in MB by a stream at full speed, after its first period."""
    audio = pcm(period(seed=0))
    size, before_mb = 2 * round(SOAK_CHUNK_S * DEVICE_HZ), 0.0
    async with server.client() as socket:
        await begin(socket)
        reading = asyncio.create_task(read_all(socket))
        for number in tqdm(range(round(hours * 3600 / PERIOD_S)), unit="period", disable=None):
            for place in range(0, len(audio), size):
                await socket.send(audio[place : place + size])
            before_mb = server.memory_mb if number == 0 else before_mb
        await socket.send(json.dumps({"type": "stop"}))
        await reading
    return server.memory_mb - before_mb


async def read_all(socket: ClientConnection) -> None:
    async for message in socket:
        if json.loads(message)["type"] == "stopped":
            return


async def measure(server: Served, model: str | None, n_clients: int, hours: float) -> Report:
    recognizer = Recognizer.load(model)
    audio = pcm(read(DEMO, DEVICE_HZ))
    decided = [d.at_s for d in Listener(recognizer).listen([read(DEMO, recognizer.info.sample_rate_hz)])]
    arrived = await hear(server, audio)
    if len(arrived) != len(decided):
        raise ConfigError(f"{len(arrived)} words over the socket, {len(decided)} from the file")
    added_ms = [1000 * (over - alone) for over, alone in zip(arrived, decided, strict=True)]

    quiet_mb, cpu_s, begun = server.memory_mb, server.cpu_s, time.monotonic()
    heard = await asyncio.gather(*(hear(server, audio) for _ in range(n_clients)))
    cpu = (server.cpu_s - cpu_s) / (time.monotonic() - begun)
    many_mb = server.memory_mb
    await leave_unfinished(server)  # memory of the first round is reused by later ones
    first_mb = server.memory_mb
    for _ in range(ROUNDS - 1):
        await leave_unfinished(server)
    half_mb = server.memory_mb - first_mb
    soak_mb = await soak(server, hours) if hours else 0.0
    return Report(
        float(np.median(added_ms)),
        max(added_ms),
        n_clients,
        sum(map(len, heard)),
        n_clients * len(decided),
        cpu / n_clients,
        (many_mb - quiet_mb) / n_clients,
        half_mb,
        hours,
        soak_mb,
    )


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all limits are met, 1 if not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m recipes.protocols.clients", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="clients at once (default: 16)")
    parser.add_argument("--hours", type=float, default=0.0, help="length of the long stream (default: none)")
    parser.add_argument("--model", metavar="PATH", help="bundle to use (default: the shipped one)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(argv)
    if arguments.clients < 1 or arguments.hours < 0:
        parser.error("--clients must be positive and --hours not negative")
    try:
        with served(arguments.model, 2 * arguments.clients) as server:
            report = asyncio.run(measure(server, arguments.model, arguments.clients, arguments.hours))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(report)) if arguments.json else report)
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
