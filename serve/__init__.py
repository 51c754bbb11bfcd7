"""The images endpoint: a Ray Serve application over a released model."""
