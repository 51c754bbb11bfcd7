"""``python -m jobs.release --config FILE``."""

import typer

from jobs.stages import command

main = command("release", "Publish a run's merged model; earlier stages that are not finished run first.")

if __name__ == "__main__":
    typer.run(main)
