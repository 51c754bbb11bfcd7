"""The images endpoint: a Ray Serve application over a released model."""

import os

# At its import, transformers warns twice that it does without torchvision, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
