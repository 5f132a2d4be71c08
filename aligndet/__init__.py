"""What AlignDet adds to plain detection, and the plumbing of a run."""
