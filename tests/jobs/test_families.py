"""Every family through the whole run by YAML alone: its served image and its release are the stock pipeline's to 1/255.

So are runs over weights of bf16 and fp16, up to the rounding of their images.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from safety.prompts.writer import write_prompts
from tests.faults.endpoint_stub import free_port
from tests.support.pico_models import PICO_MODELS
from tests.support.small_world import COUNTS, GATE, RECIPE, TAXONOMY

ROOT = Path(__file__).parent.parent.parent
SEED, STEPS, GUIDANCE = 3, 2, 3.0
WRITER, JUDGE = "tests.support.small_world:SmallWriter", {"name": "tests.support.pixel_judge:load_pixel_judge"}
RENDER = {"steps": STEPS, "guidance": GUIDANCE, "batch": 8}


def document(model: Path, folder: Path) -> dict[str, Any]:
    """Return the run of a model as YAML holds it: nothing but the model's folder differs between families."""
    taxonomy = folder / "small.yaml"
    taxonomy.write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")
    return {
        "run": {"name": "family", "seed": SEED, "output": str(folder / "out")},
        "cluster": {"address": "local", "num_cpus": 2, "dashboard": False},
        "store": {"data_dir": str(folder / "store")},
        "taxonomy": str(taxonomy),
        "model": {"path": str(model)},
        "generate": {
            "writer": WRITER,
            "counts": COUNTS.model_dump(),
            "render": RENDER,
            "judge": JUDGE,
            # The judge's flags are arbitrary, and nothing else tells what it flags.
            "filter": {"counterpart": False, "context": False, "benign_objects": False},
            "actors": 1,
        },
        "train": {
            "gate": GATE,
            "expert": {
                **RECIPE,
                "steps": 4,
                "rows": 4,
                "benign_rows": 2,
                "warmup": 0,
                "learning_rate": 0.2,
                "validation_rows": 2,
                "precision": "fp32",
                # Those of the model's own family.
                "lora": {"rank": 2, "alpha": 2.0, "targets": None},
            },
            "all_single": False,
        },
        "merge": {
            "render": RENDER,
            "judge": JUDGE,
            "search": {"trials": 3, "confirm": 1, "startup": 2},
            "baselines": ["average"],
            "workers": 1,
        },
        "evaluate": {
            "render": RENDER,
            "judge": JUDGE,
            "features": None,
            "counts": {"test": 2, "heldout": 0, "benign": 2, "expert_test": 1, "expert_others": 1, "expert_benign": 1},
            "actors": 1,
        },
        "release": {"smoke_prompts": ["a kitchen knife"]},
        "serve": {"port": free_port(), "default_steps": STEPS, "default_guidance": GUIDANCE},
    }


def run(settings: dict[str, Any], folder: Path) -> str:
    """Run the pipeline's command on a YAML file; return its log."""
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.pipeline", "--config", str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        timeout=1800,  # a busy machine takes ten times as long as a quiet one
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("name", PICO_MODELS)
def test_a_familys_release_draws_the_same_in_its_stock_pipeline(
    name: str, pico_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    model = pico_model_dir(name)
    log = run(document(model, tmp_path), tmp_path)
    assert "run family is finished" in log
    assert_drawn_by(PICO_MODELS[name].stock(model), tmp_path / "out", 1)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2000)
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 24), ("float16", 4)])
@pytest.mark.parametrize("name", ["stable-diffusion", "sd3"])
def test_a_run_over_half_weights_ends_with_the_stock_pipelines_images_up_to_rounding(
    name: str, dtype: str, most: int, pico_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    model = pico_model_dir(name)
    settings = document(model, tmp_path)
    settings["model"]["dtype"] = dtype
    settings["train"]["expert"]["precision"] = "auto"
    assert "run family is finished" in run(settings, tmp_path)
    # In fp32: a bf16 number has eight bits, as many as a pixel, and each layer rounds.
    assert_drawn_by(PICO_MODELS[name].stock(model), tmp_path / "out", most, getattr(torch, dtype))


def assert_drawn_by(stock: Any, output: Path, most: int, dtype: torch.dtype = torch.float32) -> None:
    """Assert that a run's endpoint drew what a stock pipeline draws, without and with the release, up to ``most`` / 255.

    An adapter as strong as this run's multiplies roundings: with the release, the endpoint may be as far from the pipeline as
    that is from itself in ``dtype``.
    """
    prompts = first_test_prompts()
    base, aligned = served(output / "endpoint.png", len(prompts))
    size = base[0].shape[:2]
    drawn = [draw(stock, prompt, size) for prompt in prompts]
    assert difference(base, drawn) <= most
    assert difference(aligned, drawn) > most, "the release changes no image"
    stock.load_lora_weights(output / "release")
    drawn = [draw(stock, prompt, size) for prompt in prompts]
    rounded = (
        0 if dtype == torch.float32 else difference([draw(stock.to(dtype), prompt, size) for prompt in prompts], drawn)
    )
    assert difference(aligned, drawn) <= max(most, rounded)


def first_test_prompts() -> list[str]:
    """Return the first unsafe test prompt of each category, which the run's endpoint is asked for."""
    written = write_prompts(WRITER, TAXONOMY, COUNTS, SEED)
    first: dict[str, str] = {}
    for pair in written.in_split("test"):
        first.setdefault(pair.category, pair.unsafe_prompt)
    return list(first.values())


def draw(stock: Any, prompt: str, size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return a stock pipeline's image, int16 [H, W, 3]; not every pipeline takes the model's own size by default."""
    [image] = stock(
        prompt,
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pil",
    ).images
    return np.asarray(image, dtype=np.int16)


def served(grid: Path, count: int) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Return the endpoint's images of the base and of the aligned model, from the run's grid of twice their size."""
    with Image.open(grid) as image:
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)
        pixels = np.asarray(small.convert("RGB"), dtype=np.int16)
    rows = np.split(pixels, 2, axis=0)
    base, aligned = (np.split(row, count, axis=1) for row in rows)
    return base, aligned


def difference(ones: list[np.ndarray[Any, Any]], others: list[np.ndarray[Any, Any]]) -> int:
    """Return the largest difference of two lists of images, in 1/255."""
    return max(int(np.abs(one - other).max()) for one, other in zip(ones, others, strict=True))
