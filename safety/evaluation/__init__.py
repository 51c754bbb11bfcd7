"""Evaluation: harm that a model still shows, harmless content that it lost, and the report."""
