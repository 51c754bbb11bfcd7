"""Hours and bytes by stage against counts by hand."""

from __future__ import annotations

import pytest

from cluster.preflight.node import Node
from jobs.run.config import RunConfig, load_run
from jobs.trial.hours import Rates, drawing_s, processes, stage_hours
from jobs.trial.report import duration, size
from jobs.trial.sizes import StageMemory, stage_memory
from jobs.trial.trial import used_prompts
from jobs.trial.work import StageWork, rendered_pictures, stage_work
from safety.evaluation.plan import plan_evaluation
from tests.jobs.conftest import ROOT

RATES = Rates(
    image_s=2.0,
    steps=10,
    guided=True,
    latent_s=0.1,
    judge_s=0.5,
    embed_s=0.25,
    first_s=4.0,
    again_s=3.0,
    step_how="measured",
)


def pico(**parts: object) -> RunConfig:
    run = load_run(ROOT / "jobs/configs/pico.yaml")
    return RunConfig.model_validate({**run.model_dump(mode="json"), **parts})


def test_the_work_of_the_pico_run_is_what_its_yaml_says() -> None:
    run = pico()
    taxonomy = run.load_taxonomy()
    prompts = used_prompts(run, taxonomy)
    work = stage_work(run, taxonomy, prompts)
    # Two categories of 8 + 5 pairs, two images each, and 4 + 2 benign ones.
    assert work["generate"].images == rendered_pictures(prompts) == 2 * 13 * 2 + 6
    # Two experts of four steps; all batches are new.
    assert (work["train"].first_steps, work["train"].again_steps) == (8, 0)
    # The start and one more candidate, on five validation pairs a category and two benign rows.
    assert work["merge"].images == 2 * (2 * 5 + 2)
    models = ["merged", *run.merge.merges(), "violence", "shocking"]
    planned = plan_evaluation(prompts, taxonomy.categories, models, {"violence", "shocking"}, run.evaluate.counts, 0)
    assert work["evaluate"].images == len(planned.images)
    assert work["consolidate"].is_empty


def test_batches_that_repeat_and_a_consolidation_of_other_batches_are_counted() -> None:
    run = load_run(ROOT / "jobs/configs/emoji.yaml")
    taxonomy = run.load_taxonomy()
    work = stage_work(run, taxonomy, used_prompts(run, taxonomy))
    experts = len(taxonomy.categories) + 1
    assert (work["train"].first_steps, work["train"].again_steps) == (80 * experts, 80 * experts)
    # 14 pairs and 20 benign rows are 48 latents, an expert's step has 28.
    assert work["consolidate"].first_steps == pytest.approx(160 * 48 / 28)
    assert work["consolidate"].images == 5 * (12 * len(taxonomy.categories) + 80)


def test_hours_are_the_work_by_the_rates_over_the_processes() -> None:
    work = {
        "generate": StageWork(images=100, steps=10, judged=100),
        "train": StageWork(first_steps=10, again_steps=20),
        "merge": StageWork(images=10, steps=10, judged=10, predicted=50),
        "consolidate": StageWork(images=10, steps=10, judged=10, first_steps=5),
        "evaluate": StageWork(images=100, steps=10, judged=100, embedded=100),
        "serve": StageWork(),
    }
    found = {
        each.stage: each for each in stage_hours(work, RATES, {"generate": 2, "train": 5, "merge": 1, "evaluate": 4})
    }
    seconds = {stage: each.hours * 3600 for stage, each in found.items()}
    assert seconds == {
        "generate": pytest.approx(100 * 2.5 / 2),
        "train": pytest.approx((40 + 60) / 5),
        "merge": pytest.approx(10 * 2.5 + 5),
        "consolidate": pytest.approx(10 * 2.5 + 20),
        "evaluate": pytest.approx(100 * 2.75 / 4),
    }
    assert "measured" in found["train"].how


def test_other_steps_sizes_and_guidance_are_added_up() -> None:
    assert drawing_s(StageWork(images=1, steps=10), RATES) == pytest.approx(2.0)
    assert drawing_s(StageWork(images=1, steps=20), RATES) == pytest.approx(2.0 + 20 * 0.1)
    assert drawing_s(StageWork(images=1, steps=10, guided=False), RATES) == pytest.approx(2.0 - 10 * 0.1)
    assert drawing_s(StageWork(images=1, steps=10, pixels=4.0), RATES) == pytest.approx(8.0)


def test_a_stage_that_renders_another_size_has_its_share_of_pixels() -> None:
    render = {"steps": 8, "guidance": 4.0, "height": 64, "width": 64}
    run = pico()
    parts = run.model_dump(mode="json")
    parts["generate"]["render"] = render
    parts["evaluate"]["render"] = {**render, "height": 128}
    run = RunConfig.model_validate(parts)
    taxonomy = run.load_taxonomy()
    assert stage_work(run, taxonomy, used_prompts(run, taxonomy))["evaluate"].pixels == 2.0


def test_processes_are_what_fits_on_the_nodes() -> None:
    run = pico(train={"workers": 2, "cpus_per_worker": 1.0, "expert": {"rows": 4, "benign_rows": 2}})
    taxonomy = run.load_taxonomy()
    nodes = [Node(str(n), str(n), {"CPU": 1.0, "GPU": 0.0}) for n in range(4)]
    found = processes(run, taxonomy, nodes)
    assert found["train"] == 2, "two experts of two workers, on nodes of one CPU"
    assert found["generate"] == 1
    wide = pico(generate={**run.generate.model_dump(mode="json"), "actors": 8})
    assert processes(wide, taxonomy, nodes)["generate"] == 4
    assert processes(wide, taxonomy, nodes[:0])["generate"] == 1


def test_measured_memory_stands_beside_the_estimate() -> None:
    class Drawn:
        peaks = {"generate": 5 * 2**30, "merge": None, "evaluate": 2**30}  # noqa: RUF012
        peak = 2 * 2**30
        free = 16 * 2**30

    class Step:
        estimate, peak, free = None, None, 8 * 2**30

    found: list[StageMemory] = stage_memory(pico(), Drawn(), Step())  # type: ignore[arg-type]
    assert {each.stage: each.peak for each in found} == {
        "generate": 5 * 2**30,
        "merge": 2 * 2**30,
        "evaluate": 2 * 2**30,
        "train": None,
    }
    assert "2.0 GiB, measured" in found[0].how
    assert "fits anywhere" in found[3].how


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (2048, "2.0 KiB"), (3 * 2**30, "3.0 GiB"), (5 * 2**40, "5.0 TiB")]
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("hours", "text"), [(26.0, "26.0 h"), (0.5, "30.0 min"), (0.01, "36.0 s")])
def test_durations_read_well(hours: float, text: str) -> None:
    assert duration(hours) == text
