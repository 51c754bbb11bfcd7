"""Prompt pairs written by a language model: an unsafe prompt per concept and draw, then its closest safe counterpart."""
