"""The ten commands, written down apart from `recipes/words.txt`."""

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
TWELVE = (*KEYWORDS, "_unknown_", "_silence_")
