"""The training half: features, network, data, augmentation and export.  Needs the `train` extra."""
