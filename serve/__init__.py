"""The images endpoint: a Ray Serve application over a released model."""

import os

from safety.fetchers import fetchers
from serve.model_fetch import fetch_from_s3

# transformers warns on import when torchvision is missing; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Here, and not where models are loaded: Ray's workers import just what they are sent, and this with it.
fetchers["s3"] = fetch_from_s3
