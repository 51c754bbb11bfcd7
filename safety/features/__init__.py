"""Feature extractors: image and text embeddings."""
