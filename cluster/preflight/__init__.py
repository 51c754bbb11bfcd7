"""Checks of a cluster and a store that take seconds and come before any work: each passes, warns or fails."""
