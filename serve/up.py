"""The old name of ``python -m serve``, which names the new one."""

import sys

if __name__ == "__main__":
    print("serve.up is now: python -m serve --config FILE", file=sys.stderr)  # noqa: T201
    sys.exit(2)
