"""Training: state, step, data feeding, checkpoints and monitoring, composed by `train.py`."""
