"""The job that measures the base, the experts and the merges, on Ray Data."""
