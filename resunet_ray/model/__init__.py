"""The network, what goes in and comes out, and scores; torch tensors are NCHW."""
