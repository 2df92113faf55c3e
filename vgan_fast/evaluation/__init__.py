"""How good samples are: detectors, distances, comparisons, and the protocol of each number."""
