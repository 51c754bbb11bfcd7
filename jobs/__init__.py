"""What a user submits: one module per job, each `python -m jobs.NAME --config FILE`."""
