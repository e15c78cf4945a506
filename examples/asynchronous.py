"""Recognise words in an asyncio program that does other work meanwhile.

python examples/asynchronous.py                 # the default microphone; Ctrl-C ends
python examples/asynchronous.py recording.wav   # or a recording
"""

import asyncio
import contextlib
import sys

from speech import listen_async
from speech.sound.files import read_blocks

RATE_HZ = 16000


async def count_seconds() -> None:
    """Other work."""
    for second in range(1_000_000):
        print(f"{second} s", flush=True)
        await asyncio.sleep(1)


async def main(recording: str | None = None) -> None:
    blocks = read_blocks(recording, RATE_HZ) if recording else None
    counting = asyncio.create_task(count_seconds())
    async with contextlib.aclosing(listen_async(source=blocks)) as detections:
        async for detection in detections:
            print(f"{detection.word} ({detection.confidence:.2f})", flush=True)
    counting.cancel()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:2]))
