"""The embedded default: a small text-to-image world made of openly licensed emoji drawings."""
