"""Training: batches, the workers' loop, checkpoints, and the run around them."""
