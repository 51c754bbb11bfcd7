"""Locked dependencies: files that pip installs from by hash, and the module that writes them (``make lock``)."""
