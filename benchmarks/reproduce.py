"""The arithmetic of docs/reproduce.md: the hours of the paper's run by its FLOP, at a share of an H100's peak.

    python -m benchmarks.reproduce

No GPU is used. The TFLOP of each part are computed from the models' configs (``benchmarks.sizes`` builds the same networks, and
``benchmarks.train_step`` counts theirs); the shares of the peak are what well-kept code reaches, not what was measured here.
"""

from __future__ import annotations

from typing import NamedTuple

PEAK = 989.0
"""An H100's dense bf16 rate, TFLOP/s."""
RENDERING, TRAINING = 0.4, 0.3
"""Shares of the peak."""
PAIRS, TESTED, BENIGN_MADE, BENIGN_TESTED = 15690, 7272, 2200, 2000
EXPERTS, STEPS, ROWS = 7, 2000, 16
STEPS_SAMPLED, GUIDED, MODELS = 30, 2, 2
"""Sampling steps, passes of each with guidance, and models that are evaluated on all prompts: the base and the merged one."""


class Parts(NamedTuple):
    """TFLOP of one pass or pair."""

    unet: float
    encode: float
    decode: float
    pair: float
    """One DPO pair with latents and texts cached, without the reference's errors, since no batch repeats."""


SIZES = {"SD 1.5": Parts(0.803, 1.117, 2.515, 5.04), "SDXL": Parts(6.761, 4.879, 10.470, 41.8)}


def hours(parts: Parts) -> dict[str, float]:
    """Return the hours of each stage on one H100."""
    image = STEPS_SAMPLED * GUIDED * parts.unet + parts.decode
    made = (2 * PAIRS + BENIGN_MADE) * (image + parts.encode)
    trained = EXPERTS * STEPS * ROWS * parts.pair
    evaluated = MODELS * (TESTED + BENIGN_TESTED) * image
    return {
        "generation": made / (PEAK * RENDERING) / 3600,
        "training": trained / (PEAK * TRAINING) / 3600,
        "evaluation": evaluated / (PEAK * RENDERING) / 3600,
    }


def table() -> str:
    """Return the table as Markdown; eight cards train seven experts at once."""
    lines = ["| model | generation | training | evaluation | one H100 | eight H100 |", "|---|---|---|---|---|---|"]
    for name, parts in SIZES.items():
        found = hours(parts)
        eight = (found["generation"] + found["evaluation"]) / 8 + found["training"] / EXPERTS
        cells = [f"{value:.1f} h" for value in (*found.values(), sum(found.values()), eight)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
