"""The embedded world under neutral names: the defaults of configs, and where its files lie.

A run whose YAML names no model, taxonomy or judge uses this world, so that everything runs without a download. General
code asks for it here; this is the only file that names its package.
"""

from __future__ import annotations

from safety import emoji as world

EMBEDDED_PACKAGE = world.__name__
"""The package whose modules register the world's judge, prompt writer and feature extractor."""
EMBEDDED_MODEL = EMBEDDED_TAXONOMY = EMBEDDED_JUDGE = world.NAME
EMBEDDED_WRITER = world.WRITER
EMBEDDED_FEATURES = world.FEATURES
EMBEDDED_MODEL_FOLDER = world.ZOO
EMBEDDED_TAXONOMY_FILE = world.TAXONOMY
EMBEDDED_MOMENTS_FILE = world.MOMENTS
"""Feature moments of real benign images."""
