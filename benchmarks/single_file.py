"""What unpacking a single file costs: a full-size Stable Diffusion 1.5 in fp16, of zeros, that takes no room itself.

``nice python -m benchmarks.single_file --layout stable-diffusion-1 --output docs/benchmarks/single_file.json``
"""

from __future__ import annotations

import json
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from safety.families import ModelConfig, family_name
from safety.families.identity import content_hash, model_hash
from safety.families.source import model_folder
from tests.support.original_layout import full_size, original, sparse_file

SHORT = {"stable-diffusion-1": "1", "stable-diffusion-2": "2", "stable-diffusion-xl": "xl"}
GIB = 2**30


def main(
    layout: Annotated[str, typer.Option(help=f"one of {', '.join(SHORT)}")] = "stable-diffusion-1",
    output: Annotated[Path | None, typer.Option(help="a JSON file for the figures")] = None,
) -> None:
    """Unpack a file of zeros and print seconds, memory and bytes."""
    with tempfile.TemporaryDirectory(prefix="safetydpo-benchmark-") as scratch:
        file = sparse_file(original(full_size(layout)[0], SHORT[layout]), Path(scratch) / "model.safetensors")
        config = ModelConfig(
            path=str(file), cache=Path(scratch) / "cache", prediction="v_prediction" if SHORT[layout] == "2" else None
        )
        seconds = {}
        for name, work in (
            ("family", lambda: family_name(config)),
            ("unpack", lambda: model_folder(config)),
            ("again", lambda: model_folder(config)),
            ("hash", lambda: model_hash(model_folder(config))),
            ("file's hash", lambda: content_hash(file, Path(scratch) / "hashes")),
            ("file's hash again", lambda: content_hash(file, Path(scratch) / "hashes")),
        ):
            started = time.monotonic()
            work()
            seconds[name] = round(time.monotonic() - started, 3)
        written = sum(path.stat().st_size for path in model_folder(config).rglob("*") if path.is_file())
        found = {
            "layout": layout,
            "file_gib": round(file.stat().st_size / GIB, 3),
            "written_gib": round(written / GIB, 3),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
            "seconds": seconds,
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "safetensors")},
        }
    text = json.dumps(found, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
