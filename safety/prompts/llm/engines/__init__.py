"""Engines: one file per way to ask a language model."""
