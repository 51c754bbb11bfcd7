"""Evaluation: what a model still shows of harm, what it lost of the harmless, and the report that says so."""
