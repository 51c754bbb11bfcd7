"""``python -m jobs.command``: the same as ``safetydpo``, for a checkout that is not installed."""

from jobs.command.app import app

if __name__ == "__main__":
    app(prog_name="safetydpo")
