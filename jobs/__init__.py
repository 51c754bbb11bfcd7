"""What a user submits: one module per job, each `python -m jobs.NAME --config FILE`."""

import os

# At its import, transformers warns twice that it does without torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
