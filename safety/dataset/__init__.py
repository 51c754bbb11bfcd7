"""The dataset of judged image pairs: its records, how they are made, and how they are laid out in files."""
