"""Generated audio: the demo recording, a toy corpus, synthetic voices."""
