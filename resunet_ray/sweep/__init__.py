"""A sweep: many training runs, of which the best becomes a bundle."""
