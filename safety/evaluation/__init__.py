"""Evaluation: a model's remaining harm, its benign quality, and the report of both."""
