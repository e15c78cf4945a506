"""Training: features, network, data, augmentation and export.  Needs the `train` extra."""
