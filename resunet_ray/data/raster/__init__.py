"""From bytes to pixels, one way for every file: rasters, and an adapter for each library."""
