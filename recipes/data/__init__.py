"""What training draws from: the recordings, examples composed of them, their augmentation."""
