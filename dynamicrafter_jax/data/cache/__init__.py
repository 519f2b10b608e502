"""The latent cache: videos encoded before training."""
