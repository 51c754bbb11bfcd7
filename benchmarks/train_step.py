"""A step of Diffusion-DPO against the stock recipe: same LoRA, same batch, taken in turns in one run.

    python -m benchmarks.train_step --size pico
    python -m benchmarks.train_step --size sd15 --device cuda --dtype bfloat16

The stock recipe is diffusers' own (``train_diffusion_dpo.py`` with ``--gradient_checkpointing``, as its README starts it), with
a second network as the reference: images through the VAE and prompts through the text encoder in every step. Ours reads
cached latents and states, its reference is the network with its LoRA switched off, and it keeps the reference's errors
where batches repeat. Weights are random but for ``pico``, which is the embedded model. Memory is that of a process of its
own for each.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe, in_turns, matmul_tflops
from benchmarks.own_process import in_own_process, peak_beyond, peak_bytes
from benchmarks.sizes import SHAPES, family, random_rows, text_encoders, unet, vae
from safety.experts.config import ExpertConfig
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.memory import return_memory_at_once
from safety.experts.passes import PassPlan
from safety.families import ModelConfig, load_model
from safety.lora.config import LoraConfig

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
BETA = 5000.0
VOCABULARY = 1000
WAYS = ("stock", "stock, no checkpointing", "ours", "ours, reference kept")


class StockStep:
    """The published trainer's step: two networks, VAE and text encoder in the loop."""

    def __init__(
        self, size: str, device: str, dtype: torch.dtype, pairs: int, rank: int, *, checkpointing: bool
    ) -> None:
        import peft

        self.size, self.device, self.dtype, self.pairs = size, device, dtype, pairs
        self.policy, self.reference = (_denoiser(size, device, dtype) for _ in range(2))
        self.vae, self.encoders = vae(size, dtype, device), text_encoders(size, dtype, device)
        policy: Any = self.policy
        settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="gaussian")
        policy.add_adapter(settings)
        if checkpointing:
            policy.enable_gradient_checkpointing()
            policy.train()
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)
        shapes = SHAPES[size]
        draw = torch.Generator().manual_seed(0)
        self.images = torch.rand(2 * pairs, *shapes.image, generator=draw) * 2 - 1
        self.tokens = torch.randint(VOCABULARY, (pairs, shapes.tokens), generator=draw)
        from diffusers import DDPMScheduler

        self.schedule = DDPMScheduler()

    def __call__(self) -> None:
        """Take one step."""
        latents = self._latents()
        noise = torch.randn_like(latents[: self.pairs]).repeat(2, 1, 1, 1)
        timesteps = torch.randint(1000, (self.pairs,), device=self.device).repeat(2)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        arguments = self._conditioning()
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            predicted = self._predict(self.policy, noisy, timesteps, arguments)
            with torch.no_grad():
                base = self._predict(self.reference, noisy, timesteps, arguments)
        errors, kept = _errors(predicted, noise), _errors(base, noise)
        gap = (errors[: self.pairs] - errors[self.pairs :]) - (kept[: self.pairs] - kept[self.pairs :])
        loss = -F.logsigmoid(-0.5 * BETA * gap).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _latents(self) -> Tensor:
        network: Any = self.vae
        images = self.images.to(self.device, self.dtype)
        # One at a time, as the stock script does with --vae_encode_batch_size and 24 GB: larger ones are no faster.
        parts = [network.encode(part).latent_dist.sample() for part in images.split(8)]
        latents: Tensor = torch.cat(parts) * network.config.scaling_factor
        return latents

    @torch.no_grad()
    def _conditioning(self) -> dict[str, Any]:
        tokens = self.tokens.to(self.device)
        found: list[Any] = [encoder(tokens, output_hidden_states=True) for encoder in self.encoders]
        if self.size != "sdxl":
            return {"encoder_hidden_states": found[0].last_hidden_state.repeat(2, 1, 1)}
        states = torch.cat([each.hidden_states[-2] for each in found], dim=-1).repeat(2, 1, 1)
        sizes = torch.zeros(2 * self.pairs, 6, device=self.device, dtype=self.dtype)
        added = {"text_embeds": found[-1].text_embeds.repeat(2, 1), "time_ids": sizes}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}

    def _predict(self, network: Any, noisy: Tensor, timesteps: Tensor, arguments: dict[str, Any]) -> Tensor:
        found: Tensor = network(noisy.to(self.dtype), timesteps, **arguments).sample
        return found


class OurStep:
    """An expert's step; with ``kept`` the batch repeats and its reference is known."""

    def __init__(
        self, size: str, device: str, dtype: torch.dtype, pairs: int, rank: int, *, kept: bool, plan: PassPlan
    ) -> None:
        config = ExpertConfig.model_validate(
            {
                "objective": {"name": "diffusion-dpo", "beta": BETA},
                "lora": LoraConfig(rank=rank, alpha=rank, targets=TARGETS),
                "rows": pairs,
                "benign_rows": 0,
                "timesteps": (0.0, 1.0),
                "distinct_batches": 1 if kept else None,
                "threads": torch.get_num_threads(),
                "precision": "auto",
            }
        )
        expert = Expert(family(size, dtype, device), random_rows(size, pairs, 0), config, 0, plan=plan)
        self.engine, self.number = TorchEngine(expert), 0
        if kept:
            self()

    def __call__(self) -> None:
        """Take one step."""
        self.engine.backward(self.engine.forward(self.number, 0).loss)
        self.engine.update(1e-5)
        self.number += 1


def _denoiser(size: str, device: str, dtype: torch.dtype) -> nn.Module:
    if size != "pico":
        return unet(size, dtype, device)
    return load_model(ModelConfig(device=device), "denoiser").denoiser


def _errors(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))


def make(way: str, size: str, device: str, dtype: torch.dtype, pairs: int, rank: int) -> Callable[[], None]:
    """Return a step of a way."""
    if way.startswith("stock"):
        return StockStep(size, device, dtype, pairs, rank, checkpointing=way == WAYS[0])
    return OurStep(size, device, dtype, pairs, rank, kept=way == WAYS[3], plan=PassPlan())


def peak(way: str, size: str, device: str, dtype: torch.dtype, pairs: int, rank: int) -> float:
    """Return the peak in MiB of two steps, beyond what this process had before its networks."""
    # What importing them takes is no part of a step's memory.
    import peft  # noqa: F401
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModelWithProjection  # noqa: F401

    return_memory_at_once()
    before = peak_bytes()
    step = make(way, size, device, dtype, pairs, rank)
    for _ in range(2):
        step()
    return peak_beyond(before, device) / 2**20


def tflops(step: Callable[[], None]) -> float:
    """Return what a step computes, in TFLOP: products and convolutions, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e12


def main(
    size: Annotated[str, typer.Option(help="pico, sd15 or sdxl")] = "pico",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="of the networks")] = "float32",
    pairs: Annotated[int, typer.Option(help="pairs of a step")] = 10,
    rank: int = 8,
    rounds: Annotated[int, typer.Option(help="steps of each way, in turns")] = 15,
    memory: Annotated[bool, typer.Option(help="measure each way's memory too")] = True,
) -> None:
    """Measure the ways in turns and print one JSON line each, and the ratios."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    kind: torch.dtype = getattr(torch, dtype)
    ways = {way: make(way, size, device, kind, pairs, rank) for way in WAYS}
    counted = {way: tflops(step) for way, step in ways.items()}
    seconds = in_turns(ways, rounds, device)
    top = matmul_tflops(device, kind)
    middle = {way: statistics.median(times) for way, times in seconds.items()}
    # The networks of all ways leave the device before each way has it alone.
    ways.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    print(
        json.dumps({"size": size, "pairs": pairs, "dtype": dtype, "matmul TFLOP/s": round(top, 3), **describe(device)})
    )
    for way in WAYS:
        row = {
            "way": way,
            "ms": round(1000 * middle[way], 1),
            "fastest ms": round(1000 * min(seconds[way]), 1),
            "pairs/s": round(pairs / middle[way], 2),
            "TFLOP": round(counted[way], 4),
            "of the matmul rate": round(counted[way] / middle[way] / top, 3),
            "times the stock recipe": round(middle[WAYS[0]] / middle[way], 2),
        }
        if memory:
            row["peak MiB"] = round(in_own_process(peak, way, size, device, kind, pairs, rank))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
