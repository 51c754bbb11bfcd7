"""``python -m jobs.evaluate --config FILE``."""

import typer

from jobs.stages import command

main = command("evaluate", "Evaluate a run's models; earlier stages that are not finished run first.")

if __name__ == "__main__":
    typer.run(main)
