"""Files for other programs, written from the tables alone."""
