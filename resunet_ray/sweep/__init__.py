"""A sweep: many training runs, the best of which becomes a bundle."""
