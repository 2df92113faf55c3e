"""The human study: "Which video is more realistic?", two clips at a time (paper, section 4.2)."""
