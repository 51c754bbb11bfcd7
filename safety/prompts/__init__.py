"""Prompt pairs: their rows, their writers, and the filter that every prompt passes."""
