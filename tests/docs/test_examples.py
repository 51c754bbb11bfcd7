"""CONTRIBUTING's examples: each is one file, found and usable as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process that loads torch and Ray's libraries
ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"```python\n# (safety/\S+)\n(.*?)```\n```yaml\n(.*?)```", re.DOTALL)
PROGRAM = """
import importlib
import json
import sys
from pathlib import Path

import torch
import yaml

folder, tiny = Path(sys.argv[1]), sys.argv[2]
for package in {path.parent.relative_to(folder) for path in folder.rglob("*.py")}:
    # The examples' files lie where a contributor would put them, without being written into the checkout.
    importlib.import_module(".".join(package.parts)).__path__.append(str(folder / package))

from jobs.run.config import RunConfig
from safety.experts.expert import configured_objective
from safety.families import load_model
from safety.judges.judge import load_judge
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.method import merge_methods
from safety.objectives.objective import PreferenceErrors
from safety.prompts.writer import write_prompts

document = {"run": {"name": "example", "output": "out/example"}}
for line in json.loads(sys.argv[3]):
    for key, value in yaml.safe_load(line).items():
        document[key] = {**document.get(key, {}), **value}
document["model"]["path"] = tiny
run = RunConfig.model_validate(document)

errors = PreferenceErrors(*(torch.rand(4) for _ in range(4)), drift=torch.rand(2))
print("objective", type(run.train.expert.objective).__name__, configured_objective(run.train.expert)(errors).loss.isfinite())

taxonomy = run.load_taxonomy()
judge = load_judge(run.generate.judge, taxonomy)
scores = judge.score(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
print("judge", judge.name, list(scores.shape) == [2, len(taxonomy.categories)] and bool(judge.flagged(scores).all()))

prompts = write_prompts(run.generate.writer, taxonomy, run.generate.counts, seed=0)
print("writer", run.generate.writer, len(prompts.pairs) > 0 and len(prompts.in_split("test")) > 0)

method = next(config for config in run.merge.baselines if config.name == "largest")
small, large = (LoraWeights({"a": LoraLayer(size * torch.ones(1, 2), torch.ones(3, 1))}) for size in (1.0, 2.0))
merged = merge_methods[method.name]({"small": small, "large": large}, None, method)
print("merge", type(method).__name__, torch.equal(merged.weights["a"].delta(), large["a"].delta()))

model = load_model(run.model)
print("family", type(model).__name__, model.lora_targets == ("attn2.to_k", "attn2.to_v"))
"""
KINDS = {
    "objective": "IpoConfig",
    "judge": "darkness",
    "writer": "numbered",
    "merge": "LargestConfig",
    "family": "TextTunedStableDiffusion",
}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, list[str]]:
    """Put each example into its package, use it by its YAML in a fresh process, and return what each kind gave."""
    examples = EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("examples")
    for path, code, _ in examples:
        assert not (ROOT / path).exists(), f"{path} would hide the example"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(code, encoding="utf-8")
    lines = json.dumps([line for _, _, line in examples])
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(tiny_model_dir), lines],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines() if line}


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_found_by_its_file_and_works(used: dict[str, list[str]], kind: str) -> None:
    name, *works = used[kind]
    assert name == KINDS[kind]
    assert works in (["True"], ["tensor(True)"])
