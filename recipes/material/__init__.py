"""Sounds that we make ourselves: the demo recording, a toy corpus, synthetic voices."""
