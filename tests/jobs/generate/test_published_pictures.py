"""A dataset of published pictures through real Ray Data: read by the actors, not rendered, and ready to be trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from cluster.session import Session
from cluster.store.artifacts import ArtifactStore
from jobs.generate import stage as generate
from jobs.generate.prompts import SOURCES_CARD, SOURCES_FILE
from jobs.run.artifacts import StageContext
from jobs.run.config import RunConfig
from safety.dataset.filter import RejectionReason
from safety.dataset.latents import load_preferences
from safety.dataset.summary import DatasetSummary
from safety.errors import ConfigError
from safety.families import ModelConfig, load_model
from safety.images import decode_image, fit, to_float
from tests.conftest import folder_store
from tests.support.picture_sets import picture, preference_rows, write_shards

CATEGORIES = ("violence", "very shocking")
PAIRS = [(f"a knife {n}", f"a spoon {n}", CATEGORIES[n % 2]) for n in range(20)]
CORRUPT = 4
"""A pair whose safe picture is cut short."""


def context(folder: Path, model: Path, store: ArtifactStore, **source: Any) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    captions, taxonomy = folder / "captions.txt", folder / "taxonomy.yaml"
    captions.write_text("".join(f"a house {n}\n" for n in range(30)))
    taxonomy.write_text(yaml.safe_dump({"name": "two", "version": "1", "categories": list(CATEGORIES)}))
    document = {
        "run": {"name": "published", "output": str(folder / "out")},
        "store": store.config.model_dump(mode="json"),
        "model": {"path": str(model)},
        "taxonomy": str(taxonomy),
        "prompts": {
            "pairs": [{"source": "pickapic", "category": "category", **source}],
            "benign": [{"source": "lines", "path": str(captions)}],
        },
        "generate": {
            "counts": {"benign_train": 8, "benign_validation": 8, "benign_test": 2, "benign_text_only": 4},
            "render": {"steps": 1, "batch": 8},
            "judge": {"name": "tests.support.pixel_judge:load_pixel_judge"},
            "filter": {"published": "kept"},
            "group_size": 8,
            "actors": 1,
        },
    }
    console = Console(file=io.StringIO(), width=200)
    return StageContext(run=RunConfig.model_validate(document), store=store, work=folder / "work", console=console)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    rows = preference_rows(PAIRS, 50, 40)
    for row in rows[2 * CORRUPT : 2 * CORRUPT + 2]:
        row["jpg_0"] = row["jpg_0"][:900]
    return write_shards(tmp_path / "set", rows, 3, structs=True)


@pytest.mark.ray
def test_published_pairs_become_a_training_set(
    session: Session, tiny_model_dir: Path, shards: Path, tmp_path: Path
) -> None:
    made = context(tmp_path, tiny_model_dir, folder_store(tmp_path / "store"), path=str(shards), side="conditioned_on")
    ref = generate.run(made)
    folder = made.folder(ref)
    summary = DatasetSummary.model_validate_json((folder / "summary.json").read_bytes())
    rejected = [reason for count in summary.counts if count.category != "benign" for reason in count.rejected]
    cards = json.loads((folder / SOURCES_FILE).read_text())
    used = {split for counts in cards[0]["used"].values() for split in counts}
    assert used == {"train", "validation", "test"}
    assert (cards[0]["lines"], cards[0]["merged"], cards[0]["pictures"]) == (40, 20, 20)
    assert "| pairs | pickapic | set | 40 | 20 | 20 |" in (folder / SOURCES_CARD).read_text()
    assert rejected in ([], [RejectionReason.IMAGE_CORRUPT]), "the corrupt pair is rejected, or a test prompt"
    assert (
        f"The images of {summary.published} of the rows are not the base model's" in (folder / "README.md").read_text()
    )
    model = load_model(ModelConfig(path=str(tiny_model_dir)))
    numbers = {unsafe: number for number, (unsafe, _, _) in enumerate(PAIRS)}
    prompts = {pair.pair_id: pair for pair in generate.run_prompts(made.run, made.run.load_taxonomy()).prompts.pairs}
    seen = 0
    for category in CATEGORIES:
        found = load_preferences(folder, category)
        for index, name in enumerate(found.ids):
            number = numbers[prompts[name].unsafe_prompt]
            for latents, side in ((found.loser, 0), (found.winner, 1)):
                image = fit(decode_image(picture(2 * number + side, 50, 40)), model.default_size, model.default_size)
                expected = model.encode_images(to_float(image[None]))[0].float().cpu()
                assert torch.allclose(latents[index], expected, rtol=1e-3, atol=1e-4)
            seen += 1
    assert seen + len(rejected) == summary.published


@pytest.mark.ray
def test_a_picture_that_no_actor_can_read_is_the_first_cause(
    session: Session, tiny_model_dir: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = context(tmp_path, tiny_model_dir, folder_store(tmp_path / "store"), path=str(shards), side="conditioned_on")
    read = generate.run_prompts

    def and_lose_them(*arguments: Any, **named: Any) -> Any:
        found = read(*arguments, **named)
        for shard in shards.iterdir():
            shard.unlink()
        return found

    monkeypatch.setattr(generate, "run_prompts", and_lose_them)
    with pytest.raises(ConfigError, match="cannot be read where rows are made") as refused:
        generate.run(made)
    assert refused.value.field == "prompts.path"
