"""``python -m jobs.train --config FILE``."""

import typer

from jobs.stages import command

main = command("train", "Train a run's experts; its dataset is made first when it is not there.")

if __name__ == "__main__":
    typer.run(main)
