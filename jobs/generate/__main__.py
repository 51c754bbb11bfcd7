"""``python -m jobs.generate --config FILE``."""

import typer

from jobs.stages import command

main = command("generate", "Make a run's preference dataset.")

if __name__ == "__main__":
    typer.run(main)
