"""The algorithm: what a generation is asked, its plan, and the run that follows it."""
