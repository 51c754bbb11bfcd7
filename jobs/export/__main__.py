"""``python -m jobs.export --config FILE --form FORM --output PATH``."""

import typer

from jobs.export.command import main

if __name__ == "__main__":
    typer.run(main)
