"""``python -m jobs.merge --config FILE``."""

import typer

from jobs.stages import command

main = command(
    "merge", "Merge a run's experts, and consolidate the merge; earlier stages that are not finished run first."
)

if __name__ == "__main__":
    typer.run(main)
