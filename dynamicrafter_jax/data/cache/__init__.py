"""The latent cache: clips encoded before training."""
