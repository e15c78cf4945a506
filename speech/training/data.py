"""Names that moved to `clips` and `corpus`."""

from speech.training.clips import *  # noqa: F403
from speech.training.corpus import *  # noqa: F403
