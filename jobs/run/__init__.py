"""Parts that all jobs share: a run's config, its start and end, its artifacts and unfinished work."""
