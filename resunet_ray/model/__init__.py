"""The network and what surrounds it: torch tensors, batch by channel by height by width, and scores."""
