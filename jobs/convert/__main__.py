"""``python -m jobs.convert --model FOLDER_OR_FILE --output FOLDER``."""

import typer

from jobs.convert.command import main

if __name__ == "__main__":
    typer.run(main)
