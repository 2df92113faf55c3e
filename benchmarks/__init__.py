"""Measurements of speed and quality, and the committed results of runs."""
