"""A stub of the former command: ``python -m jobs.merge`` consolidates the merge."""

import sys

if __name__ == "__main__":
    print("python -m jobs.consolidate is now part of python -m jobs.merge", file=sys.stderr)  # noqa: T201
    sys.exit(2)
