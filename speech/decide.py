"""Utterances -> decisions: each utterance is read once, then accepted or rejected with one reason."""

from speech.heads import Reader, Reading, Word
from speech.results import Detection, Examined, Reason, Rejection
from speech.segment import SAMPLE_RATE_HZ, ListenerConfig, Utterance


class Decision:
    """Accepts or rejects utterances; commands right after talk are rejected.

    Args:
        reader: reader of the bundle's head.
        config: the settings.
        wake: word that must precede commands; it may be the first word of the same utterance.  None: no wake word.
    """

    TALK = (Reason.TOO_LONG, Reason.ANOTHER_WORD)
    """Reasons for which talk is rejected."""
    TALK_S = 0.7
    """Rejected speech longer than this is talk; a command mistaken for another word is usually shorter."""

    def __init__(self, reader: Reader, config: ListenerConfig, wake: str | None = None) -> None:
        self._reader, self._wake = reader, wake
        self._after_talk = round(config.after_talk_s * SAMPLE_RATE_HZ)
        self._wake_for = round(config.wake_for_s * SAMPLE_RATE_HZ)
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._reader.reset()
        self._talk_end = -self._after_talk
        self._awake_until = -1

    def is_awake(self, now: int) -> bool:
        """Whether a command that begins at `now`, in samples since the stream began, would be accepted."""
        return self._wake is None or now < self._awake_until

    def decide(self, utterance: Utterance, fed: int) -> Examined:
        """Read one utterance.

        Args:
            utterance: if it is longer than the reader's maximum, it is rejected without being read.
            fed: samples of the stream so far; the padded last hop of a stream may extend beyond them.
        """
        if utterance.is_long:
            nothing = Word("", utterance.start - utterance.begin, utterance.end - utterance.begin, 0.0)
            reading = Reading((nothing,), Reason.TOO_LONG, {})
        else:
            reading = self._reader.read(utterance)
        reason = reading.reason or self._objection(utterance, reading)
        if reason and not reading.reason:
            self._reader.reset()  # a sentence cannot continue after rejected words
        if reading.reason in self.TALK and utterance.end - utterance.start > self.TALK_S * SAMPLE_RATE_HZ:
            self._talk_end = utterance.end
        return self._examined(utterance, reading, reason, fed)

    def _objection(self, utterance: Utterance, reading: Reading) -> Reason | None:
        """Reason to reject accepted words because of their time: after talk, or without a wake word."""
        if utterance.start - max(self._talk_end, utterance.talk_end) < self._after_talk:
            return Reason.AFTER_TALK
        if self._wake and reading.words[0].word == self._wake:
            self._awake_until = utterance.end + self._wake_for
        return None if self.is_awake(utterance.start) else Reason.NO_WAKE_WORD

    def _examined(self, utterance: Utterance, reading: Reading, reason: Reason | None, fed: int) -> Examined:
        begin, at_s = utterance.begin, min(utterance.closed, fed) / SAMPLE_RATE_HZ
        found = []
        for word in reading.words:
            start_s, end_s = (begin + word.start) / SAMPLE_RATE_HZ, min(begin + word.end, fed) / SAMPLE_RATE_HZ
            found.append(Detection(word.word, start_s, end_s, word.confidence, at_s))
        rejection = None
        if reason:
            confidence = min(d.confidence for d in found)
            words = " ".join(d.word for d in found)
            rejection = Rejection(reason, words, found[0].start_s, found[-1].end_s, confidence, at_s)
        detections = () if reason else tuple(found)
        return Examined(utterance.waveform, begin / SAMPLE_RATE_HZ, at_s, dict(reading.scores), detections, rejection)
