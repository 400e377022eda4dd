"""Files for other programs, made of the tables alone."""
