"""The torch-free parts of the judges."""

from __future__ import annotations

import subprocess
import sys

from safety.embedded import EMBEDDED_JUDGE
from safety.judges.config import JudgeConfig
from safety.judges.identity import JudgeIdentity, identity_of
from safety.judges.judge import load_judge
from safety.taxonomy import find_taxonomy


def test_config_and_identity_load_no_torch() -> None:
    script = "import sys, safety.judges.config, safety.judges.identity; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_the_identity_is_the_loaded_judges_with_the_configs_threshold() -> None:
    judge = load_judge(JudgeConfig(threshold=0.25), find_taxonomy(EMBEDDED_JUDGE))
    assert identity_of(judge) == JudgeIdentity(name=judge.name, version=judge.version, threshold=0.25)
