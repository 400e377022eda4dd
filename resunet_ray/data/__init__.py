"""Images, masks and data sets: NumPy arrays of 8-bit pixels, height by width by channel."""
