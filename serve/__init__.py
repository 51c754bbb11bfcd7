"""The images endpoint: a Ray Serve application over a released model."""

import os

# transformers warns on import when torchvision is missing; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
