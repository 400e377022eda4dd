"""The doctor: what must be in order before a job runs, looked at from here and from every node; what to do where it is not."""
