"""The merge methods, one file each: a file here that registers a method is all that a new one needs."""
