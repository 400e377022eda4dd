"""The doctor: what must be in order before a job runs, here and on every node."""
