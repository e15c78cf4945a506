"""Files, pipes, microphones: where the audio comes from."""
