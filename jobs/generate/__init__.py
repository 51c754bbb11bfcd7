"""The job that makes the preference dataset, on Ray Data."""
