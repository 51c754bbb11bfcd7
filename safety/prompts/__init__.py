"""Prompt pairs: their rows, their writers, and the guard that every prompt passes."""

from safety.emoji.prompt_writer import GrammarWriter
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet
from safety.prompts.writer import PromptCounts, PromptWriter, write_prompts, writers

__all__ = [
    "BenignPrompt",
    "GrammarWriter",
    "PromptCounts",
    "PromptPair",
    "PromptSet",
    "PromptWriter",
    "write_prompts",
    "writers",
]
