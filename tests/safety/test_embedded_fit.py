"""What the embedded world's judge and features may measure: its own model, wherever that lies, and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safety.embedded import EMBEDDED_FEATURES, EMBEDDED_JUDGE, EMBEDDED_MODEL_FOLDER
from safety.embedded_fit import WEIGHTS, is_embedded_model, require_made_for
from safety.errors import ConfigError
from safety.families.model_config import ModelConfig
from safety.features.extractor import feature_extractors
from safety.judges.judge import judges
from tests.support.pixel_judge import load_pixel_judge


def test_a_copy_is_the_embedded_model_and_one_of_its_size_is_not(tmp_path: Path, tiny_model_dir: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED_MODEL_FOLDER, copy)
    assert is_embedded_model(ModelConfig())
    assert is_embedded_model(ModelConfig(path=str(copy)))
    settings = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings | {"beta_end": 0.5}))
    assert (copy / WEIGHTS).stat().st_size == (EMBEDDED_MODEL_FOLDER / WEIGHTS).stat().st_size
    assert not is_embedded_model(ModelConfig(path=str(copy)))
    assert not is_embedded_model(ModelConfig(path=str(tiny_model_dir)))
    assert not is_embedded_model(ModelConfig(vae=str(copy / "vae")))


@pytest.mark.parametrize("implementation", [judges[EMBEDDED_JUDGE], feature_extractors[EMBEDDED_FEATURES]])
def test_what_was_made_for_the_embedded_model_is_refused_on_another(
    implementation: object, tiny_model_dir: Path
) -> None:
    require_made_for(ModelConfig(), implementation, "x", "judge.name", "name another")
    with pytest.raises(ConfigError, match=r"'x' was made for the embedded model.*name another"):
        require_made_for(ModelConfig(path=str(tiny_model_dir)), implementation, "x", "judge.name", "name another")


def test_ones_own_judge_is_taken_on_any_model(tiny_model_dir: Path) -> None:
    require_made_for(ModelConfig(path=str(tiny_model_dir)), load_pixel_judge, "x", "judge.name", "name another")
