"""Turns pickled models into safetensors: the one command that opens pickles, in a process under limits."""
