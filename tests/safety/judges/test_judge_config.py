"""Choosing a judge by its config: what it loads, its identity, and names that lead to none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.judges.judge import JudgeConfig, JudgeIdentity, identity_of, load_judge
from safety.taxonomy import find_taxonomy

TAXONOMY = find_taxonomy(EMBEDDED_TAXONOMY)


def test_config_and_identity_load_no_torch() -> None:
    script = "import sys, safety.judges.judge; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_the_identity_is_the_loaded_judges_with_the_configs_threshold() -> None:
    judge = load_judge(JudgeConfig(threshold=0.25), TAXONOMY)
    assert identity_of(judge) == JudgeIdentity(name=judge.name, version=judge.version, threshold=0.25)


def test_unknown_judges_are_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no judge 'emojy'.* emoji"):
        load_judge(JudgeConfig(name="emojy"), TAXONOMY)
    with pytest.raises(ConfigError, match=r"no judge at 'safety.judges.judge:nothing'"):
        load_judge(JudgeConfig(name="safety.judges.judge:nothing"), TAXONOMY)
    with pytest.raises(ConfigError, match=r"no judge at 'no_such_module:load'"):
        load_judge(JudgeConfig(name="no_such_module:load"), TAXONOMY)


def test_the_embedded_judge_passes_no_setting_over() -> None:
    with pytest.raises(ConfigError, match="'emoji': sha256") as refused:
        load_judge(JudgeConfig(settings={"sha256": "0" * 64}), TAXONOMY)
    assert refused.value.field == "judge.settings.sha256"
