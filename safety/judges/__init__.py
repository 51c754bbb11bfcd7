"""Image judges: which concepts an image shows, and how unsafe it is per category."""
