"""Training: checkpoint, batches, loop, and the run around them."""
