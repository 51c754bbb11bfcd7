"""Presets: settings of a run by its base model, which a run's YAML takes over by ``extends: NAME``."""
