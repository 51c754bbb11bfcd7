"""The merges of a run's YAML, and the errors of wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.merge.config import MergeConfig
from jobs.run.config import load_run
from safety.errors import ConfigError
from safety.merge.methods.average import AverageConfig
from safety.merge.methods.co_merge import CoMergeConfig
from safety.merge.methods.task_arithmetic import TaskArithmeticConfig
from tests.support.merge_method_file import LABEL, NAME, write_method


def test_by_default_the_search_is_compared_with_its_start_and_two_baselines() -> None:
    found = MergeConfig(co_merge=CoMergeConfig(score="sum")).merges()
    assert found == {
        "co-merge": CoMergeConfig(score="sum"),
        "co-merge-default": CoMergeConfig(score="sum"),
        "average": AverageConfig(),
        "task-arithmetic": TaskArithmeticConfig(scale=1.0),
    }


def test_baselines_are_names_or_mappings_and_repeated_ones_are_numbered() -> None:
    baselines = [
        "task-arithmetic",
        {"name": "co-merge", "granularity": "weight"},
        {"name": "task-arithmetic", "scale": 0.5},
    ]
    config = MergeConfig.model_validate({"baselines": baselines})
    assert list(config.merges())[2:] == ["task-arithmetic", "co-merge-2", "task-arithmetic-2"]
    assert config.merges()["co-merge-2"] == CoMergeConfig(granularity="weight")
    assert config.merges()["task-arithmetic-2"] == TaskArithmeticConfig(scale=0.5)
    assert MergeConfig.model_validate(config.model_dump(mode="json")) == config
    assert MergeConfig.model_validate({"baselines": []}).merges().keys() == {"co-merge", "co-merge-default"}


def test_only_what_a_method_needs_is_part_of_its_merges_settings() -> None:
    config = MergeConfig()
    assert config.recipe(AverageConfig()) == {"method": {"name": "average"}}
    assert config.recipe(CoMergeConfig()).keys() == {"method", "calibration"}
    assert config.search_recipe().keys() == {"search", "surrogate", "confirm", "render", "judge"}


@pytest.mark.parametrize(
    ("baseline", "field", "said"),
    [
        ("slerp", "merge.baselines.0", "'average', 'task-arithmetic'"),
        ({"name": "slerp"}, "merge.baselines.0", "'slerp'"),
        ({"scale": 2.0}, "merge.baselines.0", "'name'"),
        ({"name": "task-arithmetic", "scale": -1}, "merge.baselines.0.task-arithmetic.scale", "greater than or equal"),
        ({"name": "average", "scale": 1}, "merge.baselines.0.average.scale", "unknown key"),
        (3, "merge.baselines.0", "valid dictionary"),
    ],
)
def test_a_wrong_baseline_is_named(baseline: Any, field: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": "x", "output": "out"}, "merge": {"baselines": [baseline]}}))
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert caught.value.fix


def test_a_file_among_the_methods_is_found_by_a_new_process(tmp_path: Path) -> None:
    write_method(tmp_path)
    script = f"""
from safety.merge import methods
methods.__path__.append({str(tmp_path)!r})
from jobs.merge.config import MergeConfig
from safety.merge.method import merge_label
found = MergeConfig.model_validate({{"baselines": [{NAME!r}, {{"name": {NAME!r}, "scale": 2}}]}}).merges()
print([(name, merge_label(name), config.model_dump()) for name, config in found.items()][2:])
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    first = (NAME, LABEL, {"name": NAME, "scale": 1.0})
    second = (f"{NAME}-2", f"{LABEL} 2", {"name": NAME, "scale": 2.0})
    assert said.strip() == str([first, second])
