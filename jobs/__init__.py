"""The jobs that a user submits: one folder each, run by ``python -m jobs.NAME --config FILE``."""

import os

# transformers warns on import when torchvision is missing; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
