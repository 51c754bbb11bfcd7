"""The embedded default: a small text-to-image world made of openly licensed emoji drawings."""

from pathlib import Path

NAME = "emoji"
"""Names the model, the taxonomy and the judge in configs."""
WRITER = "grammar"
FEATURES = "emoji-clip"
ZOO = Path(__file__).parent / "zoo"
"""The trained models, in diffusers format."""
TAXONOMY = Path(__file__).parent / "taxonomy.yaml"
MOMENTS = ZOO / "fid" / "benign.safetensors"
"""Moments of the features of real benign scenes."""
