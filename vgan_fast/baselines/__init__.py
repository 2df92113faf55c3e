"""Older methods that recovered and synthesised clips are compared with."""
