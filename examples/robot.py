"""A robot that obeys "go", "stop", "left" and "right" while its own loop keeps running.

python examples/robot.py                 # the default microphone; Ctrl-C ends
python examples/robot.py recording.wav   # or a recording
"""

import contextlib
import queue
import sys
import time

from speech import Detection, Listener, Recognizer, listen_in_background
from speech.sound.files import read_blocks

STEP_S = 0.02
WHEELS = {"go": (1.0, 1.0), "stop": (0.0, 0.0), "left": (-0.5, 0.5), "right": (0.5, -0.5)}
"""Speed of the left and the right wheel after each word."""


def drive(left: float, right: float) -> None:
    """One step of the robot's own work: send the speeds to the motors, read its sensors, ..."""


def main(recording: str | None = None) -> None:
    recognizer = Recognizer.load()
    listener = Listener(recognizer, words=list(WHEELS))
    blocks = read_blocks(recording, recognizer.info.sample_rate_hz) if recording else None
    detections: queue.Queue[Detection] = queue.Queue()
    speeds = WHEELS["stop"]
    with listen_in_background(detections.put, listener, blocks) as background:
        while background.is_running or not detections.empty():
            while not detections.empty():
                word = detections.get().word
                speeds = WHEELS[word]
                print(f"{word}: wheels at {speeds[0]:+.1f} {speeds[1]:+.1f}", flush=True)
            drive(*speeds)
            time.sleep(STEP_S)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:2])
