"""One run of speech.listen: from the source to what is printed, recorded and acted on."""

import argparse
import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from speech.actions import Actions
from speech.console import (
    DEMO,
    Console,
    chosen_grammar,
    chosen_thresholds,
    chosen_words,
    counted,
    listener_config,
    make_recognizer,
    model_name,
    open_microphone,
)
from speech.errors import AudioError
from speech.grammar import NGram
from speech.listener import Listener
from speech.pausing import Pauser
from speech.recorder import Recorder
from speech.results import Detection, Rejection, as_dict
from speech.settings import match_name
from speech.sound.containers import RawFormat
from speech.sound.devices import list_devices
from speech.sound.echo import Playback, without_echo
from speech.sound.files import Block, Recording, audio_files, open_recording
from speech.sound.sources import limited, paced, standard_input


def show_devices(as_json: bool, console: Console) -> None:
    """Print the input devices; * marks the default."""
    devices = list_devices()
    for device in devices:
        mark = "*" if device.is_default else " "
        if as_json:
            print(json.dumps(asdict(device)))
        else:
            print(f"{mark} {device.number:3}  {device}  ({device.channels} channels, {device.sample_rate_hz} Hz)")
    if not devices:
        console.tell("no input device")


def make_listener(arguments: argparse.Namespace, console: Console, **callbacks: Any) -> Listener:
    """The Listener that the options of speech.listen describe.

    Args:
        callbacks: `on_rejection`, `on_utterance` of `Listener`.
    Raises:
        SpeechError: the bundle, or a setting, can't be used.
    """
    recognizer = make_recognizer(arguments, console)
    words = chosen_words(arguments, recognizer.words)
    language_model = None
    if arguments.language_model is not None:
        language_model = NGram.load(arguments.language_model, recognizer.info.words)
    return Listener(
        recognizer,
        words,
        chosen_thresholds(arguments, recognizer, console),
        listener_config(arguments),
        chosen_grammar(arguments.grammar, words or recognizer.info.words),
        wake=match_name(arguments.wake, recognizer.words) if arguments.wake else None,
        language_model=language_model,
        **callbacks,
    )


class ListeningSession:
    """Listens to the source that the command line names, and prints, records and acts on the results."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        self.arguments, self.console = arguments, console
        self.listener = make_listener(arguments, console, on_rejection=self._reject)
        self.rate, self.model = self.listener.recognizer.info.sample_rate_hz, model_name(arguments)
        self.actions = self.recorder = None
        if arguments.actions:
            self.actions = Actions.load(
                arguments.actions, tuple(self.listener.thresholds), console.tell, console.inform
            )
        if arguments.record:
            self.recorder = Recorder(arguments.record, self.rate, {"model": self.model}, console.tell)
        self.pauser = Pauser(self.listener, path=arguments.pause_file, changed=self._note_pause)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda *_: self.pauser.toggle())
        self.is_live = not arguments.file or arguments.realtime
        self.with_names = False
        self.n_detections, self.n_heard, self.failed = 0, 0, False
        self.overflows: int | None = None

    def run(self) -> int:
        """Listen until the source ends, then wait for the actions.  Returns the exit status."""
        arguments = self.arguments
        if arguments.file or arguments.stdin or arguments.demo:
            for name, opened in self._recordings():
                with self._reported():
                    self._play(name, opened())
        else:
            self._microphone()
        if self.actions:
            self.actions.finish()
        return int(self.failed)

    def _recordings(self) -> Iterator[tuple[str, Callable[[], Recording]]]:
        """The name of each recording, and what opens it."""
        arguments = self.arguments
        for path in ["-"] if arguments.stdin else arguments.file or [DEMO]:
            is_folder = os.path.isdir(path)
            self.with_names |= is_folder or len(arguments.file or ()) > 1
            if path == "-":
                yield "standard input", self._standard_input
            elif is_folder:
                with self._reported():
                    yield from ((str(file), partial(open_recording, file)) for file in audio_files([path]))
            else:
                yield DEMO.name if path is DEMO else path, partial(open_recording, path)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Report an error of a recording, and go on with the next."""
        try:
            yield
        except AudioError as error:
            self.console.tell(f"error: {error}")
            self.failed = True

    def _standard_input(self) -> Recording:
        encoding, rate_hz, n_channels = self.arguments.format, self.arguments.rate, self.arguments.channels
        raw = RawFormat(
            encoding or "s16le", self.rate if rate_hz is None else rate_hz, 1 if n_channels is None else n_channels
        )
        self.console.inform(f"listening to standard input, model {self.model}")
        return standard_input(raw, encoding is None, self.console.inform)

    def _play(self, name: str, recording: Recording) -> None:
        self._note_rate(recording.sample_rate_hz)
        blocks, seconds = recording.blocks(self.rate), recording.seconds
        if self.arguments.demo or self.arguments.realtime:
            self.console.inform(f"listening to {name}, model {self.model}")
            blocks, seconds = paced(blocks, self.rate), None
        self._listen(blocks, name, seconds)

    def _note_rate(self, rate_hz: int) -> None:
        if rate_hz < self.rate:
            self.console.inform(
                f"note: recorded at {rate_hz} Hz, so nothing above {rate_hz // 2} Hz is audible; expect more misses"
            )

    def _microphone(self) -> None:
        reconnect, wait = not self.arguments.no_reconnect, self.arguments.wait
        playback = Playback() if self.arguments.echo else None
        with open_microphone(self.arguments, self.console, reconnect=reconnect, wait=wait) as microphone:
            opened, self.pauser.discard = microphone.device, microphone.discard
            self.console.inform(
                f"listening on {opened.name} at {opened.sample_rate_hz} Hz, model {self.model}; Ctrl-C ends"
            )
            self._note_rate(opened.sample_rate_hz)
            try:
                blocks = microphone.blocks(self.rate)
                self._listen(without_echo(blocks, playback) if playback else blocks, opened.name)
            finally:
                self.overflows = microphone.overflows

    def _note_pause(self, is_paused: bool) -> None:
        self.console.inform("paused" if is_paused else "listening again")

    def _listen(self, blocks: Iterable[Block], source: str, seconds: float | None = None) -> None:
        """Process a source from its beginning.

        Args:
            seconds: length of the source, if it is read as fast as possible.
        """
        self.listener.reset()
        self.console.begin(min(seconds, self.arguments.seconds or math.inf) if seconds else None)
        self.source = source
        if self.actions:
            self.actions.reset()
        if self.recorder:
            self.recorder.reset()
            self.recorder.about["source"] = source
        for block in limited(blocks, self.arguments.seconds, self.rate):
            self.n_heard += len(block)
            block = self.pauser.let_through(block)
            if self.recorder:
                self.recorder.feed(block)
            self._report(self.listener.feed(block))
            if self.arguments.wake:
                self.console.sign = "awake " if self.listener.is_awake else "asleep"
            self.console.heard(block, self.listener.heard_s)
        self._report(self.listener.flush())

    def _report(self, detections: list[Detection]) -> None:
        for detection in detections:
            self.n_detections += 1
            self._print(detection)
            self.console.note(f"{detection.word} {detection.confidence:.2f}")
            if self.actions:
                self.actions(detection)
            if self.recorder:
                self.recorder.keep(detection, self.listener.thresholds[detection.word])

    def _reject(self, rejection: Rejection) -> None:
        """Show why nothing was reported, and record near misses."""
        if self.arguments.rejected:
            self._print(rejection)
        if rejection.was_close:
            self.console.note(f"({rejection.word} {rejection.confidence:.2f}: {rejection.reason})")
            if self.recorder:
                self.recorder.keep(rejection, self.listener.thresholds.get(rejection.word))

    def _print(self, result: Detection | Rejection) -> None:
        """One line on stdout, at once; as JSON with the clock time of the decision where the source is live."""
        self.console.clear()
        if self.arguments.json:
            more = {"file": self.source} if self.with_names else {}
            if self.is_live:
                more["time"] = datetime.now().astimezone().isoformat(timespec="milliseconds")
            line = json.dumps(as_dict(result) | more)
        else:
            line = f"{result.start_s:8.2f} s  {result.word:<8} {result.confidence:4.2f}"
            line = f"{self.source}: {line}" if self.with_names else line
        print(line, flush=True)

    def close(self) -> None:
        """Stop actions that still run, and print a summary."""
        if self.actions:
            self.actions.close()
        self.console.clear()
        if self.n_heard or self.overflows is not None:
            lost = "" if self.overflows is None else f", {counted(self.overflows, 'overflow')}"
            said = counted(self.n_detections, "command")
            self.console.inform(f"heard {self.n_heard / self.rate:.1f} s, {said}{lost}")
