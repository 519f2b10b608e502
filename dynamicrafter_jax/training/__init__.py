"""Training: state, step, data feeding, checkpoints and watching, composed by `train.py`."""
