"""Names that moved to `clips` and `corpus`."""

from speech.recognizer import SILENCE, UNKNOWN
from speech.training.clips import *  # noqa: F403
from speech.training.clips import CLIP, SAMPLE_RATE_HZ, Waveform, extent, fit, set_level
from speech.training.corpus import *  # noqa: F403
from speech.training.corpus import ARCHIVE_FOLDER, KEYWORDS, Corpus
