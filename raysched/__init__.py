"""raysched shares GPUs."""
