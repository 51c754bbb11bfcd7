"""The preflight's trial: eight pictures, a training step, and what a whole run will need by them."""
