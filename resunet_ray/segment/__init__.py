"""Segmentation of archives: plan, segment, commit."""
