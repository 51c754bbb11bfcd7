"""The card of an expert: its settings, its training's metrics and alarms, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from safety.experts.checkpoint import Metrics
from safety.experts.config import ExpertConfig
from safety.experts.coverage import Coverage
from safety.experts.training import TrainingResult
from safety.markdown import code, plain

CARD_FILE = "README.md"
SHOWN = (
    "dpo_loss",
    "implicit_accuracy",
    "winner_error",
    "reference_winner_error",
    "loser_error",
    "reference_loser_error",
    "drift",
)
LAST_STEPS = 20


def write_card(
    folder: Path,
    name: str,
    config: ExpertConfig,
    result: TrainingResult,
    provenance: Mapping[str, Any],
    seen: Coverage | None = None,
) -> Path:
    """Write ``README.md`` for the expert called ``name``; ``provenance`` names its base, data and seed, ``seen`` its rows."""
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    origin = "\n".join(f"- {key}: {code(str(value))}" for key, value in provenance.items())
    text = f"""---
library_name: diffusers
tags: [lora, text-to-image, safety, diffusion-dpo]
---
# SafetyDPO expert: {plain(name)}

A LoRA that steers a text-to-image model away from images of the category *{plain(name)}*, trained by
`{config.objective.name}` against the base model (the same network with this LoRA switched off).

{origin}

## Use

```python
pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")
```

## Training

{_summary(result.history)}
{"" if seen is None or seen.share == 1 else f"{chr(10)}Trained on {seen.text}: `distinct_batches` or `steps` end before the others.{chr(10)}"}
![learning curves](curves.png)

{_alarms(result)}

## Settings

```yaml
{settings}```
"""
    path = folder / CARD_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _summary(history: list[Metrics]) -> str:
    """Return a table of the first step's metrics and the mean of the last ones."""
    last = history[-LAST_STEPS:]
    lines = [f"| metric | first step | mean of the last {len(last)} steps |", "|---|---|---|"]
    for name in SHOWN:
        if name in history[0]:
            mean = sum(metrics[name] for metrics in last) / len(last)
            lines.append(f"| {name.replace('_', ' ')} | {history[0][name]:.4f} | {mean:.4f} |")
    validated = [metrics for metrics in history if "validation_implicit_accuracy" in metrics]
    if validated:
        figure = validated[-1]["validation_implicit_accuracy"]
        lines.append(f"| implicit accuracy on validation rows | - | {figure:.4f} (last validation) |")
    return "\n".join(lines)


def _alarms(result: TrainingResult) -> str:
    if not result.alarms:
        return "No health alarm was raised."
    return "Health alarms:\n\n" + "\n".join(
        f"- step {alarm.step}, {alarm.kind}: {alarm.message}" for alarm in result.alarms
    )
