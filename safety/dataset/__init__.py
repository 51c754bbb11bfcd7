"""The dataset of judged image pairs: its records, their rendering and judging, and its files."""
