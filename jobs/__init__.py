"""The jobs that a user submits: one folder each, run by ``python -m jobs.NAME --config FILE``."""

import os

# It enters the fetcher of models at s3:// addresses, which jobs' workers need as well as an endpoint's.
import serve  # noqa: F401

# transformers warns on import when torchvision is missing; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
