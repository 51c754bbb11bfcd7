"""The whole run, from the taxonomy to images from the endpoint: ``python -m jobs.pipeline --config FILE``."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import typer
from PIL import Image, PngImagePlugin
from rich.markup import escape
from rich.table import Table

from cluster.errors import ClusterError
from cluster.hashing import config_hash
from cluster.submission import submission
from jobs.evaluate.stage import REPORT_FILE
from jobs.release.stage import FOLDER
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RUN_FILE
from jobs.run.launch import ConfigOption, opened
from jobs.run.name_checks import require_pointer
from jobs.run.needs import STAGES, require_needs
from jobs.run.pilot import pilot_of
from jobs.stages import Stages
from safety.evaluation.metrics import METRICS_FILE
from safety.evaluation.plan import BASE, MERGED
from safety.images import decode_image, to_pil
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from serve.app import build
from serve.deployment import deploy, undeploy

GRID_FILE = "endpoint.png"
ANSWERS = "answers"
"""The grid's text entry that says what its images are answers to: a hash of the release, the prompts and the settings."""


class Asked(NamedTuple):
    """One prompt put to the endpoint, and the images that the base and the aligned model returned."""

    category: str
    prompt: str
    base: bytes
    aligned: bytes


def run(context: StageContext) -> None:
    """Run every stage, deploy the release and ask it for one image per category."""
    require_needs(context.run, STAGES)
    require_pointer(context.run, context.store)
    stages = Stages(context)
    dataset = stages.dataset()
    experts = stages.experts(dataset)
    merges = stages.merges(dataset, experts)
    report = stages.report(dataset, experts, merges)
    release = stages.release(merges[MERGED], report)
    stages.served(release, lambda: check_endpoint(context, dataset, release))
    note_seconds(context.run.run.output / METRICS_FILE, stages.seconds)
    context.console.print(results_table(context, report, release, stages.seconds))


def check_endpoint(context: StageContext, dataset: ArtifactRef, release: ArtifactRef) -> None:
    """Save the endpoint's answers as a grid, unless the grid there holds its answers to the same questions already."""
    run = context.run
    questions = config_hash(
        {
            "release": release.id,
            "dataset": dataset.id,
            "model": context.model.model_dump(mode="json"),
            "device": run.model.device,
            "seed": run.run.seed,
            "serve": run.serve.model_dump(mode="json"),
        }
    )
    path = run.run.output / GRID_FILE
    if answers_of(path) == questions:
        context.console.print(f"endpoint: it has been asked about this release before, {escape(str(path))}")
        return
    save_grid(ask_endpoint(context, dataset), path, questions)


def answers_of(path: Path) -> str | None:
    """Return the hash of the questions that a grid's images answer; None for no whole grid."""
    try:
        with Image.open(path) as grid:
            grid.load()
            return grid.info.get(ANSWERS)
    except (OSError, SyntaxError):  # SyntaxError is what Pillow raises for a damaged PNG
        return None


def ask_endpoint(context: StageContext, dataset: ArtifactRef) -> list[Asked]:
    """Deploy the release, ask both models for an image per category with one seed, and take it down."""
    run = context.run
    # For this check alone, on this machine: settings for other callers or other releases are left out.
    alone = {"host": "127.0.0.1", "keys": None, "judge": None, "models": (), "reload_poll_s": None}
    endpoint = run.serve.model_copy(update={"serve_base": True, **alone})
    document = {
        "serve": endpoint.model_dump(mode="json"),
        "model": run.model.model_dump(mode="json"),
        "store": context.store.config.model_dump(mode="json"),
    }
    url = deploy(build(document), endpoint)
    context.console.print(f"endpoint {url}/v1/images/generations")
    try:
        # On this machine, so no proxy of the environment has a part in it.
        with httpx.Client(base_url=url, timeout=endpoint.request_timeout_s, trust_env=False) as client:
            return [
                Asked(
                    category,
                    prompt,
                    _image(client, prompt, BASE, run.run.seed),
                    _image(client, prompt, endpoint.pointer, run.run.seed),
                )
                for category, prompt in first_prompts(context, dataset)
            ]
    finally:
        undeploy(endpoint)


def first_prompts(context: StageContext, dataset: ArtifactRef) -> list[tuple[str, str]]:
    """Return the first unsafe test prompt of each category."""
    prompts = read_prompt_file(context.folder(dataset, PROMPTS_FILE) / PROMPTS_FILE)
    first: dict[str, str] = {}
    for pair in prompts.pairs:
        if pair.split == "test":
            first.setdefault(pair.category, pair.unsafe_prompt)
    return list(first.items())


def _image(client: httpx.Client, prompt: str, model: str, seed: int) -> bytes:
    """Ask for one image; raise ClusterError with the endpoint's own message when it refuses."""
    answer = client.post("/v1/images/generations", json={"prompt": prompt, "model": model, "seed": seed})
    if answer.status_code != httpx.codes.OK:
        raise ClusterError(
            f"the endpoint answered {answer.status_code}: {answer.text[:300]}",
            field="serve",
            fix="read the replica's log",
        )
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def save_grid(asked: Sequence[Asked], path: Path, questions: str) -> None:
    """Write the images as one PNG: a column per category, the base model above the aligned one.

    ``questions`` is the hash by which ``answers_of`` recognises it.
    """
    images = [[to_pil(decode_image(data)) for data in (a.base, a.aligned)] for a in asked]
    side = max((image.width for column in images for image in column), default=1)
    grid = Image.new("RGB", (max(1, len(images)) * side, 2 * side), "white")
    for column, pair in enumerate(images):
        for row, image in enumerate(pair):
            grid.paste(image, (column * side, row * side))
    entries = PngImagePlugin.PngInfo()
    entries.add_text(ANSWERS, questions)
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(path, pnginfo=entries)


def note_seconds(path: Path, seconds: dict[str, float]) -> None:
    """Add the seconds of the stages after the evaluation to the delivered metrics."""
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    metrics["seconds"] = {**metrics["seconds"], **seconds}
    path.write_text(json.dumps(metrics, indent=1, ensure_ascii=False), encoding="utf-8")


def results_table(context: StageContext, report: ArtifactRef, release: ArtifactRef, seconds: dict[str, float]) -> Table:
    """Return the table that ends a run: its results, their places and the stages' seconds."""
    output, submitted = context.run.run.output, submission() is not None
    config = output / RUN_FILE
    host = f" on {socket.gethostname()}" if submitted else ""
    table = Table(title=f"run {context.run.run.name} is finished{escape(host)}")
    table.add_column("what")
    table.add_column("where", overflow="fold")
    rows = [
        ("report", str(output / REPORT_FILE)),
        ("figures", str(output / METRICS_FILE)),
        ("base above aligned, from the endpoint", str(output / GRID_FILE)),
        ("the run's config with every default", str(config)),
        ("release, for any diffusers pipeline", str(output / FOLDER)),
        ("release id", f"{release.id}, pointer {context.run.release.pointer!r}"),
        # The output folder of a submitted job is on the node that ran it; others find the artifacts in the store.
        ("report in the store", context.store.where(*report)),
        ("release in the store", context.store.where(*release)),
        ("serve it", "serve deploy, docs/endpoint.md" if submitted else f"make serve CONFIG={config}"),
        ("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())),
    ]
    for what, where in rows:
        table.add_row(what, escape(where))
    return table


def main(
    config: ConfigOption,
    pilot: Annotated[
        bool, typer.Option("--pilot", help="take 20 pairs per category through every stage, as a run of its own")
    ] = False,
) -> None:
    """Run the whole pipeline; what exists and verifies is skipped."""
    with opened(config, pilot_of if pilot else None) as context:
        run(context)


if __name__ == "__main__":
    typer.run(main)
