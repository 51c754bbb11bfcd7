"""Eight pictures of a run's own prompts by its own model and settings, drawn and measured where generation draws."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from jobs.trial.footprint import fetched_bytes, render_peaks
from safety.base import Config
from safety.dataset.filter import reject_prompt
from safety.dataset.record import Record, dump_group
from safety.dataset.renderer import GroupRenderer
from safety.errors import EmptyDatasetError, PromptError
from safety.experts.config import ExpertConfig
from safety.experts.memory import free_bytes
from safety.families import ModelConfig, ModelFamily, load_model
from safety.families.family import family_name, model_folder
from safety.families.weight_files import LEFT_OUT, unread_weights
from safety.lora.attach import target_layers
from safety.precision import compute_dtype
from safety.prompts.rows import PromptRow, PromptSet
from safety.rendering import RenderConfig, row_seed

PICTURES = 8
BUDGET_S = 90.0
"""The longest that the pictures are to take: a large model on a CPU draws them in fewer sampling steps."""
LONG_PASS_S = 10.0
"""A pass that would take longer is not timed as a whole."""
MOST_CHECKED = 20000
"""Prompts that are held against the token limit; of more, as many spread over all of them."""


class ModelFacts(Config):
    """What was found in a model's folder and in its loaded networks."""

    family: str
    denoiser: str
    """Its class."""
    prediction: str
    """What it predicts: "epsilon", "v_prediction" or "flow"."""
    parameters: int
    """Of the denoiser."""
    dtype: str
    device: str
    side: int
    """Of its own images, in pixels."""
    max_tokens: int
    adapted: int
    """Layers that an expert adapts."""
    ignored: tuple[str, ...]
    """Files and parts of the folder that are not read."""


class TokenLimit(NamedTuple):
    """Prompts over the model's token limit."""

    checked: int
    over: dict[str, int]
    """By split; only those that have some."""


class Drawn(NamedTuple):
    """The pictures with all that was measured on the way. Times are in seconds, sizes in bytes."""

    facts: ModelFacts
    records: bytes
    """The rendered rows, as ``dump_group`` has them."""
    pictures: int
    steps: int
    """Sampling steps that they were drawn in."""
    render_s: float
    """Rendering and encoding of all pictures in the run's own steps; where they were drawn in fewer, the rest is added up."""
    pass_s: float
    """One pass of the denoiser over the latents of all pictures, those of guidance among them."""
    latents: int
    """Of such a pass."""
    limit: TokenLimit
    peak: int | None
    """Most bytes of the GPU in use while they were drawn; None on a CPU."""
    peaks: dict[str, int | None]
    """Most bytes of rendering by stage, estimated for its own batch; None: the model is small."""
    free: int
    """Bytes of the device that the process may take, before the model was loaded."""
    fetched: int
    """Bytes of the model's copy on the machine, where it was fetched."""


def draw(
    config: ModelConfig,
    renders: Mapping[str, RenderConfig],
    expert: ExpertConfig,
    rows: Sequence[PromptRow],
    prompts: PromptSet,
    seed: int,
    threads: int,
) -> Drawn:
    """Draw the first rows that can be drawn, up to eight pictures, in this process.

    Args:
        config: The model.
        renders: How each stage renders; the pictures are drawn as generation draws.
        expert: An expert's settings, for the layers that it adapts.
        rows: Candidates in their order; ones that the guard refuses or that are too long are passed over.
        prompts: All of the run's prompts, to be held against the token limit.
        seed: The run's seed: a row's pictures start from the noise that they will have in the run.
        threads: CPU threads of one actor.

    Raises:
        EmptyDatasetError: None of the rows can be drawn.
    """
    torch.set_num_threads(threads)
    device, render = torch.device(config.device), renders["generate"]
    free = free_bytes(device)
    model = load_model(config)
    chosen = drawable(rows, model)
    count = sum(len(row.prompts) for row in chosen)
    records = [Record(row=row, seed=row_seed(seed, row.row_id)) for row in chosen]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    latents = count * (2 if render.guidance > 1 else 1)
    pass_s = time_pass(model, render, latents)
    steps = max(1, min(render.steps, int(BUDGET_S / pass_s)))
    renderer = GroupRenderer(model, render.model_copy(update={"steps": steps}))
    started = time.perf_counter()
    rendered = renderer.render(records)
    seconds = time.perf_counter() - started
    # No longer than a step of what was drawn: one latent at a time takes longer than together.
    pass_s = min(pass_s, seconds / steps)
    return Drawn(
        facts=describe(config, model, expert),
        records=dump_group(rendered),
        pictures=count,
        steps=steps,
        render_s=seconds + (render.steps - steps) * pass_s,
        pass_s=pass_s,
        latents=latents,
        limit=over_limit(prompts, model),
        peak=torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
        peaks=render_peaks(config, renders),
        free=free,
        fetched=fetched_bytes(config),
    )


def drawable(rows: Sequence[PromptRow], model: ModelFamily) -> list[PromptRow]:
    """Return the first rows that the guard lets pass and the model can read, up to eight pictures."""
    chosen: list[PromptRow] = []
    left = PICTURES
    for row in rows:
        if len(row.prompts) <= left and reject_prompt(row.prompts, model) is None:
            chosen.append(row)
            left -= len(row.prompts)
        if not left:
            break
    if not chosen:
        raise EmptyDatasetError(
            "no prompt of the run can be drawn: each is refused, or longer than the model reads",
            field="generate",
            fix="read the counts of prompts over the token limit, and shorten them",
        )
    return chosen


def candidates(prompts: PromptSet) -> list[PromptRow]:
    """Return the rows to draw in their order: pairs, each category in turn, training ones first; then benign rows."""
    found: list[PromptRow] = []
    for split in ("train", "validation", "test", "heldout"):
        by_category: dict[str, list[PromptRow]] = {}
        for pair in prompts.in_split(split):
            by_category.setdefault(pair.category, []).append(pair)
        for number in range(PICTURES):
            found += [rows[number] for rows in by_category.values() if number < len(rows)]
    return [*found, *prompts.benign[:PICTURES]]


@torch.no_grad()
def time_pass(model: ModelFamily, render: RenderConfig, latents: int) -> float:
    """Return the seconds of one pass of the denoiser; of one that would take long, those of a single latent times their number."""
    shape = model.latent_shape(render.height or model.default_size, render.width or model.default_size)

    def predict(count: int) -> float:
        noisy = torch.zeros(count, *shape, device=model.device)
        timesteps = torch.full((count,), model.train_timesteps // 2, device=model.device)
        conditioning = {key: value.expand(count, *value.shape[1:]) for key, value in model.unconditional().items()}
        started = time.perf_counter()
        model.predict(noisy, timesteps, conditioning).float().sum().item()
        return time.perf_counter() - started

    # The first pass of a size warms up.
    if (alone := min(predict(1), predict(1))) * latents > LONG_PASS_S:
        return alone * latents
    return min(predict(latents), predict(latents))


def describe(config: ModelConfig, model: ModelFamily, expert: ExpertConfig) -> ModelFacts:
    """Return what was found of a model."""
    folder = model_folder(config)
    scheduler: Any = getattr(getattr(model, "pipeline", None), "scheduler", None)
    # A flow-matching sampler has no such setting.
    prediction = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    read = {path for path in folder.glob("*/*.safetensors") if path.parent.name not in LEFT_OUT}
    parts = [name for name in LEFT_OUT if (folder / name).is_dir()]
    return ModelFacts(
        family=family_name(config),
        denoiser=type(model.denoiser).__name__,
        prediction=prediction or "flow",
        parameters=sum(parameter.numel() for parameter in model.denoiser.parameters()),
        dtype=str(compute_dtype(model.denoiser)).removeprefix("torch."),
        device=str(model.device),
        side=model.default_size,
        max_tokens=model.max_tokens,
        adapted=len(target_layers(model, expert.lora.targets_on(model))),
        ignored=(*unread_weights(folder, read), *(f"{name}/" for name in parts)),
    )


def over_limit(prompts: PromptSet, model: ModelFamily) -> TokenLimit:
    """Count the prompts that have more tokens than the model reads, by split."""
    every = prompts.prompts()
    stride = max(1, -(-len(every) // MOST_CHECKED))
    over: dict[str, int] = {}
    for prompt, split in every[::stride]:
        try:
            model.check_prompt(prompt)
        except PromptError:
            over[split] = over.get(split, 0) + 1
    return TokenLimit(len(every[::stride]), over)
