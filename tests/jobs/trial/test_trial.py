"""The trial on real small models, in this process: what it draws, counts and saves, against counts by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cluster.preflight.node import Node
from jobs.run.config import RunConfig
from jobs.trial import step as step_module
from jobs.trial.judging import judge_pictures, pictures_of
from jobs.trial.pictures import PICTURES, candidates, draw
from jobs.trial.step import ARITHMETIC, MEASURED, preferences_of, time_step
from jobs.trial.trial import GRID_FILE, TRIAL_FILE, Trial, count_rows, save, try_out, used_prompts
from safety.dataset.record import load_group
from safety.errors import ConfigError, EmptyDatasetError
from safety.judges.judge import JudgeConfig
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet
from tests.jobs.test_families import document
from tests.support.pico_models import PICO_MODELS
from tests.support.small_world import TAXONOMY

NODES = [Node("", "here", {"CPU": 2.0, "GPU": 0.0})]


def run_of(model: Path, folder: Path, **parts: Any) -> RunConfig:
    return RunConfig.model_validate({**document(model, folder), **parts})


def tried(run: RunConfig) -> tuple[Trial, PromptSet]:
    taxonomy = run.load_taxonomy()
    prompts = used_prompts(run, taxonomy)
    return try_out(run, taxonomy, prompts, NODES), prompts


@pytest.mark.slow
@pytest.mark.parametrize("name", PICO_MODELS)
def test_a_model_of_any_family_is_tried_out(name: str, pico_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    run = run_of(pico_model_dir(name), tmp_path)
    trial, prompts = tried(run)
    report = trial.report
    assert report.facts.family == PICO_MODELS[name].family
    assert report.facts.prediction in ("epsilon", "v_prediction", "flow")
    assert (report.facts.prediction == "flow") == (report.facts.family in ("sd3", "flux"))
    assert report.facts.adapted > 0
    assert report.pictures == PICTURES
    assert report.picture_s > 0
    assert (report.step_how, report.first_step_s > 0) == (MEASURED, True)
    assert report.uncovered == ()
    assert {hours.stage for hours in report.hours} == {"generate", "train", "merge", "evaluate", "release", "serve"}
    assert all(hours.hours > 0 for hours in report.hours)
    assert sum(sum(row.splits.values()) for row in report.rows) == len(prompts.pairs) + len(prompts.benign)
    assert torch.get_num_threads() >= 1


def test_its_pictures_are_those_of_the_run_and_are_saved_as_a_grid(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    trial, _ = tried(run)
    path = save(trial, run.run.output)
    assert path == run.run.output / GRID_FILE
    assert Image.open(path).size == (4 * 18 + 2, 2 * 18 + 2)  # eight of 16 pixels, two of margin
    found = json.loads((run.run.output / TRIAL_FILE).read_text(encoding="utf-8"))
    assert found["facts"]["family"] == "stable-diffusion"
    assert found["bytes"]["store"] > found["bytes"]["node_disk"] > 0


def drawn_of(run: RunConfig, prompts: PromptSet, rows: Any = None) -> Any:
    renders = {"generate": run.generate.render, "merge": run.merge.render, "evaluate": run.evaluate.render}
    return draw(run.model, renders, run.train.expert, rows or candidates(prompts), prompts, run.run.seed, 1)


def test_prompts_over_the_limit_are_counted_by_split_and_not_drawn(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    prompts = used_prompts(run, TAXONOMY)
    first, second = prompts.in_split("train")[:2]
    long = "a kitchen knife " * 40
    over = PromptSet(
        pairs=tuple(
            pair.model_copy(update={"unsafe_prompt": long, "safe_prompt": f"{long}x"}) if pair == first else pair
            for pair in prompts.pairs
        ),
        benign=prompts.benign,
    )
    drawn = drawn_of(run, over)
    assert drawn.limit.over == {"train": 2}
    assert drawn.limit.checked == len(over.prompts())
    rows = {record.row.row_id for record in load_group(drawn.records)}
    assert first.pair_id not in rows
    assert second.pair_id in rows
    with pytest.raises(EmptyDatasetError, match="no prompt of the run can be drawn"):
        drawn_of(run, over, [over.pairs[prompts.pairs.index(first)]])


def test_a_source_without_safe_sides_is_tried_out_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Its rows have one picture each; a step takes as long on them."""
    run = run_of(tiny_model_dir, tmp_path)
    benign = tuple(
        BenignPrompt(prompt_id=f"b-{n}", prompt=f"a house {n}", split="test", writer="w") for n in range(PICTURES)
    )
    drawn = drawn_of(run, PromptSet(pairs=(), benign=benign))
    assert drawn.pictures == PICTURES
    preferences = preferences_of(drawn.records)
    assert len(preferences) == PICTURES
    assert torch.equal(preferences.winner[0], preferences.loser[0])
    found = timed(run, drawn)
    assert found.first_s > 0


def timed(run: RunConfig, drawn: Any) -> Any:
    return time_step(
        run.model, run.generate.render, run.train.expert, drawn.records, drawn.pass_s, drawn.latents, 1, 1.0
    )


def test_a_step_that_would_take_too_long_is_arithmetic(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    drawn = drawn_of(run, used_prompts(run, TAXONOMY))
    monkeypatch.setattr(step_module, "BUDGET_S", 0.0)
    found = timed(run, drawn)
    assert found.how == ARITHMETIC
    # Four pairs are eight latents, and two benign rows; the reference's pass makes 3.2 passes of them.
    assert found.first_s == pytest.approx(3.2 * 10 * drawn.pass_s / drawn.latents)
    assert found.again_s == pytest.approx(2.2 * 10 * drawn.pass_s / drawn.latents)


def test_a_large_model_is_drawn_in_fewer_steps_and_the_rest_is_added_up(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    prompts = used_prompts(run, TAXONOMY)
    monkeypatch.setattr("jobs.trial.pictures.BUDGET_S", 0.0)
    drawn = drawn_of(run, prompts)
    assert drawn.steps == 1 < run.generate.render.steps
    assert drawn.render_s >= run.generate.render.steps * drawn.pass_s


def test_what_a_judge_flags_and_covers_is_counted(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    drawn = drawn_of(run, used_prompts(run, TAXONOMY))
    images, unsafe = pictures_of(drawn.records)
    assert images.shape == (PICTURES, 3, 16, 16)
    assert unsafe == [True] * 4 + [False] * 4
    config = JudgeConfig(name="tests.support.pixel_judge:load_pixel_judge", threshold=0.5)
    judged = judge_pictures(config, TAXONOMY, drawn.records)
    flagged = [float(int(image.to(torch.int64).sum()) % 97) / 97 >= 0.5 for image in images]
    assert (judged.unsafe, judged.other) == (4, 4)
    assert (judged.flagged_unsafe, judged.flagged_other) == (sum(flagged[:4]), sum(flagged[4:]))
    assert judged.covered == TAXONOMY.categories
    assert judged.uncovered == ()


def test_rows_are_counted_by_category_and_split() -> None:
    pair = PromptPair(
        pair_id="p",
        category=TAXONOMY.categories[0],
        concept=None,
        split="test",
        unsafe_prompt="u",
        safe_prompt="s",
        writer="w",
    )
    prompts = PromptSet(pairs=(pair, pair.model_copy(update={"pair_id": "q"})), benign=())
    found = {row.category: row.splits for row in count_rows(TAXONOMY, prompts)}
    assert found[TAXONOMY.categories[0]] == {"test": 2}
    assert found[TAXONOMY.categories[1]] == {}, "a category without a row is named too"


def test_candidates_take_each_category_in_turn_training_pairs_first(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    prompts = used_prompts(run, TAXONOMY)
    rows = candidates(prompts)
    categories = [row.category for row in rows[: 2 * len(TAXONOMY.categories)] if isinstance(row, PromptPair)]
    assert categories == [*TAXONOMY.categories, *TAXONOMY.categories]
    assert rows[0].split == "train"
    assert isinstance(rows[-1], BenignPrompt)


@pytest.mark.parametrize(("work", "field"), [("draw", "generate.render.batch"), ("time_step", "train.expert")])
def test_a_full_card_is_told_by_the_setting(
    work: str, field: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(f"jobs.trial.trial.{work}", full)
    with pytest.raises(ConfigError, match="Tried to allocate 20 GiB") as refused:
        tried(run_of(tiny_model_dir, tmp_path))
    assert refused.value.field == field
