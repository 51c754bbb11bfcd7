"""What the stages of a run load: its base model, judges, features and prompts, and a trial of each before any work.

The preflight loads all of it, where the stages will. A stage does the same when it starts, short of the base model on one
machine without a GPU: there the model's files are looked at, and its first process loads it anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from cluster.errors import ClusterError
from cluster.store.signatures import Signer, TrustedKeys
from jobs.generate.prompts import run_prompts
from jobs.generate.writing import expected_pairs, try_writer
from jobs.run.config import RunConfig
from jobs.run.placement import Place, is_cheap, placed
from jobs.run.places import (
    evaluate_place,
    generate_place,
    judge_place,
    merge_place,
    serve_place,
    train_place,
    writer_place,
)
from jobs.run.resource_requests import without_gpu
from safety.embedded_fit import is_embedded_model, require_made_for
from safety.errors import ConfigError, SafetyError
from safety.evaluation.lpips import load_lpips
from safety.evaluation.moments import real_moments
from safety.evaluation.picture_folder import picture_files
from safety.evaluation.plan import MERGED, plan_evaluation
from safety.experts.config import ExpertConfig
from safety.experts.passes import require_arithmetic
from safety.families import ModelConfig, ModelFamily, load_model
from safety.families.family import family_name, model_folder
from safety.families.weight_files import require_folder
from safety.features.extractor import feature_extractors, load_features
from safety.fetchers import is_address
from safety.judges.judge import JudgeConfig, judges, load_judge
from safety.judges.members import members
from safety.lora.attach import target_layers
from safety.merge.methods.co_merge import CoMergeConfig
from safety.merge.rendered_score import choose_prompts
from safety.precision import compute_dtype
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.writer import PromptCounts
from safety.registry import Registry
from safety.rendering import RenderConfig
from safety.samplers import SamplerName
from safety.taxonomy import Taxonomy

T = TypeVar("T")
STAGES = ("generate", "train", "merge", "evaluate", "release", "serve")
OTHER_JUDGE = "name a judge of what this model draws, by 'module:loader' where it is your own"
OTHER_FEATURES = "name features of what this model draws, by 'module:loader' where they are your own, or null for none"
JUDGE = "judge."
"""What errors of a judge call its settings, whichever stage names it."""
FEW = 2
"""Prompts of each kind that a stage's start tries; the preflight tries all."""


class Problem(NamedTuple):
    """Something that a stage would fail on."""

    what: str
    """What does not load: "model", "judges", "features", "prompts" or "names"."""
    field: str
    message: str
    fix: str


@dataclass(frozen=True)
class Loads:
    """A stage's kind of process, and what it loads; the fields are the settings' names."""

    stage: str
    place: Place
    model: ModelConfig | None = None
    judge: JudgeConfig | None = None
    judge_field: str = "judge"
    """The stage's setting that names the judge."""
    judge_partly: bool = False
    """Whether it may cover some of the categories only."""
    features: str | None = None
    features_field: str = "features"
    reference: Path | None = None
    """A folder of pictures."""
    lpips: Path | None = None
    writer: LlmWriterConfig | None = None
    render: RenderConfig | None = None
    expert: ExpertConfig | None = None
    prompts: tuple[str, ...] = ()
    """Prompts of the settings, which the model must be able to read."""

    @property
    def things(self) -> dict[str, object]:
        """Return what is loaded, by the name that problems have for it."""
        features = self.features or self.reference or self.lpips
        every = {"model": self.model, "judges": self.judge, "features": features, "writer": self.writer}
        return {what: thing for what, thing in every.items() if thing is not None}


def stages_up_to(last: str) -> tuple[str, ...]:
    """Return the stages that the job ``last`` runs."""
    return STAGES[: STAGES.index(last) + 1]


def run_loads(run: RunConfig, stages: Sequence[str]) -> list[Loads]:
    """Return what the processes of some stages load."""
    writer = None if run.prompts is None else run.prompts.writer
    writing = [] if writer is None else [Loads("generate", writer_place(writer), writer=writer)]
    every = [
        *writing,
        Loads("generate", generate_place(run), model=run.model, render=run.generate.render),
        Loads("generate", judge_place(run), judge=run.generate.judge),
        Loads("train", train_place(run), model=run.model, expert=run.train.expert),
        Loads("merge", merge_place(run), model=run.model, judge=run.merge.judge, render=run.merge.render),
        Loads(
            "evaluate",
            evaluate_place(run),
            model=run.model,
            judge=run.evaluate.judge,
            features=run.evaluate.features,
            render=run.evaluate.render,
        ),
        Loads(
            "evaluate",
            evaluate_place(run),
            judge=run.evaluate.second_judge,
            judge_field="second_judge",
            judge_partly=True,
            features=run.evaluate.fid_features,
            features_field="fid_features",
            reference=run.evaluate.fid_reference,
            lpips=run.evaluate.lpips,
        ),
        Loads("release", evaluate_place(run), model=run.model, prompts=run.release.smoke_prompts),
        Loads("serve", serve_place(run), model=run.model, judge=run.serve.judge),
    ]
    return [loads for loads in every if loads.stage in stages]


def require_needs(run: RunConfig, stages: Sequence[str]) -> None:
    """Raise ConfigError for the first thing that one of the stages would fail on; in seconds, before any work."""
    taxonomy = run.load_taxonomy()
    problems = [*name_problems(run, taxonomy, stages), *prompt_problems(run, taxonomy, stages, FEW)]
    for place, loads in by_place(run_loads(run, stages)):
        if problems:
            break
        if is_cheap(place):
            problems += load_problems(loads, taxonomy, models=False)
        else:
            problems += placed(place, load_problems, loads, taxonomy, models=True)
    for problem in problems:
        raise ConfigError(problem.message, field=problem.field, fix=problem.fix)


def by_place(every: Iterable[Loads]) -> list[tuple[Place, list[Loads]]]:
    """Return the loads by place, so that each place is tried by one task.

    What needs no GPU is tried together, with as many CPUs as any of it needs: importing torch takes seconds.
    """
    groups: dict[tuple[str, float, float], tuple[Place, list[Loads]]] = {}
    for loads in sorted(every, key=lambda loads: -loads.place.resources.get("CPU", 0.0)):
        cpus, gpus = (loads.place.resources.get(name, 0.0) for name in ("CPU", "GPU"))
        _, group = groups.setdefault((loads.place.device, cpus if gpus else 0.0, gpus), (loads.place, []))
        group.append(loads)
    return list(groups.values())


def load_problems(loads: Sequence[Loads], taxonomy: Taxonomy, *, models: bool) -> list[Problem]:
    """Load everything in this process, each thing once; return what fails. ``models``: base models as well as their files."""
    problems: list[Problem] = []
    loaded: dict[ModelConfig, ModelFamily | None] = {}
    for each in loads:
        if each.model is not None:
            if each.model not in loaded:
                loaded[each.model] = _model(each.model, problems, whole=models)
            if (model := loaded[each.model]) is not None:
                _try_model(each, model, problems)
        if each.judge is not None:
            sides = [model.default_size for model in loaded.values() if model is not None]
            _try_judge(each, each.judge, taxonomy, problems, sides[0] if sides else None)
        if each.features is not None:
            device = "cpu" if each.model is None else each.model.device
            field = f"{each.stage}.{each.features_field}"
            _try_features(field, each.features, device if models else "cpu", problems)
        if each.writer is not None:
            attempt(problems, "writer", "prompts.writer", partial(try_writer, each.writer, taxonomy, ask=models))
        if (folder := each.reference) is not None:
            attempt(problems, "features", "evaluate.fid_reference", lambda folder=folder: picture_files(folder))  # type: ignore[misc]
        if (weights := each.lpips) is not None:
            attempt(problems, "features", "evaluate.lpips", lambda weights=weights: load_lpips(weights))  # type: ignore[misc]
    return problems


def _model(config: ModelConfig, problems: list[Problem], *, whole: bool) -> ModelFamily | None:
    """Return the loaded model, or None where it fails or only its files are looked at."""

    def load() -> ModelFamily | None:
        if whole:
            return load_model(config)
        require_folder(model_folder(config))
        return None

    named = "model.path" if config.family is None else "model.family"
    if attempt(problems, "model", named, lambda: family_name(config)) is None:
        return None
    return attempt(problems, "model", "model.path", load)


def _try_model(each: Loads, model: ModelFamily, problems: list[Problem]) -> None:
    """Hold a stage's settings against the loaded model."""
    if each.render is not None:
        sides = [side or model.default_size for side in (each.render.height, each.render.width)]
        attempt(problems, "model", f"{each.stage}.render", lambda: model.latent_shape(*sides))
        attempt(problems, "model", f"{each.stage}.render.sampler", partial(_try_sampler, model, each.render.sampler))
    if (expert := each.expert) is not None:
        targets, dtype = expert.lora.targets_on(model), compute_dtype(model.denoiser)
        attempt(problems, "model", "train.expert.lora.targets", lambda: target_layers(model, targets))
        # Where model.dtype is "auto", a GPU alone knows the type.
        attempt(problems, "model", "train.expert.precision", lambda: require_arithmetic(expert, dtype))
    for prompt in each.prompts:
        attempt(problems, "model", "release.smoke_prompts", lambda prompt=prompt: model.check_prompt(prompt))  # type: ignore[misc]


def _try_sampler(model: ModelFamily, sampler: SamplerName | None) -> None:
    with model.sampling(sampler):
        pass


def _try_judge(each: Loads, judge: JudgeConfig, taxonomy: Taxonomy, problems: list[Problem], side: int | None) -> None:
    """Load a judge, and have it score one black image of the model's size where that is known."""

    def load() -> None:
        found = load_judge(judge, taxonomy, partly=each.judge_partly)
        if side is None:
            return
        scores = found.score(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        found.flagged(scores)
        if tuple(scores.shape) != (1, len(found.categories)):
            raise ConfigError(
                f"the judge {judge.name!r} returns scores {tuple(scores.shape)} of one image in "
                f"{len(found.categories)} categories",
                field="judge.name",
                fix="have score() return one row an image and one column a category",
            )

    setting = f"{each.stage}.{each.judge_field}"
    attempt(problems, "judges", f"{setting}.name", load, within=setting)


def _try_features(field: str, name: str, device: str, problems: list[Problem]) -> None:
    def load() -> None:
        real_moments(load_features(name, device).name)

    attempt(problems, "features", field, load)


def name_problems(run: RunConfig, taxonomy: Taxonomy, stages: Sequence[str]) -> list[Problem]:
    """Return the categories, experts and keys that the settings of some stages name, and that there are none of."""
    known = taxonomy.categories
    problems = [
        Problem(
            "names", "train.categories", f"the taxonomy has no category {name!r}", f"use some of: {', '.join(known)}"
        )
        for name in (run.train.categories or () if "train" in stages else ())
        if name not in known
    ]
    trained = _trained(run, taxonomy)
    methods = [("merge.co_merge", run.merge.co_merge), *(("merge.baselines", each) for each in run.merge.baselines)]
    for field, method in methods if "merge" in stages else ():
        named = method.lambdas if isinstance(method, CoMergeConfig) else {}
        problems += [
            Problem("names", f"{field}.lambdas", f"there is no expert {name!r}", f"use some of: {', '.join(trained)}")
            for name in named
            if name not in trained
        ]
    return problems + fit_problems(run, stages) + placement_problems(run, stages) + key_problems(run, stages)


def fit_problems(run: RunConfig, stages: Sequence[str]) -> list[Problem]:
    """Return the judges and features that were made for the embedded model, where the run's model is another."""
    problems: list[Problem] = []

    def check(what: str, field: str, registry: Registry[Any], name: str, fix: str) -> None:
        attempt(
            problems,
            what,
            field,
            lambda: require_made_for(run.model, registry.find(name, field), name, field, fix),
        )

    found: list[Problem] = []
    if is_embedded_model(run.model):
        return problems
    # A model that is not there is another problem, which the loads report. One at an address is not fetched for this.
    if not is_address(run.model.path) and attempt(found, "model", "", lambda: family_name(run.model)) is None:
        return problems
    for each in run_loads(run, stages):
        if each.judge is not None:
            for judge in members(each.judge):
                check("judges", f"{each.stage}.{each.judge_field}.name", judges, judge.name, OTHER_JUDGE)
        if each.features is not None:
            kind = each.features.partition("@")[0]
            check("features", f"{each.stage}.{each.features_field}", feature_extractors, kind, OTHER_FEATURES)
    return problems


def placement_problems(run: RunConfig, stages: Sequence[str]) -> list[Problem]:
    """Return what no cluster could run: a model on a GPU without one, workers that share one GPU, an impossible arithmetic."""
    problems: list[Problem] = []
    lacking = [field for field in without_gpu(run) if field.partition(".")[0] in stages]
    if lacking:
        problems.append(
            Problem(
                "names",
                ", ".join(lacking),
                f"the model is on {run.model.device!r} and these give its processes no GPU",
                "set them to 1 or a share of 1, leave them out, or set model.device to 'cpu'",
            )
        )
    train, dtype = run.train, run.model.dtype
    if "train" in stages and train.workers > 1 and 0 < train.gpus_per_worker < 1:
        problems.append(
            Problem(
                "names",
                "train.gpus_per_worker",
                f"{train.workers} workers of an expert would share a GPU ({train.gpus_per_worker:g} each), which NCCL refuses",
                "set it to 1, or train.workers to 1: experts, each of one worker, can share a GPU",
            )
        )
    arithmetic = {"fp32": "float32", "bf16": "bfloat16"}.get(train.expert.precision)
    if "train" in stages and dtype in ("bfloat16", "float16") and arithmetic not in (None, dtype):
        problems.append(
            Problem(
                "names",
                "train.expert.precision",
                f"weights of {dtype} (model.dtype) cannot compute in {train.expert.precision!r}",
                "set it to 'auto', or model.dtype to float32",
            )
        )
    return problems


def key_problems(run: RunConfig, stages: Sequence[str]) -> list[Problem]:
    """Return what is wrong with the files of keys: the driver's own, and an endpoint's where it runs on this machine."""
    problems: list[Problem] = []
    signing, trusted = run.release.signing_key, run.serve.trusted_keys
    if "release" in stages and signing is not None:
        attempt(problems, "names", "release.signing_key", lambda: Signer.read(signing, "release.signing_key"))
    if "serve" in stages and trusted and is_cheap(serve_place(run)):
        attempt(problems, "names", "serve.trusted_keys", lambda: TrustedKeys.read(trusted, "serve.trusted_keys"))
    return problems


def prompt_problems(
    run: RunConfig, taxonomy: Taxonomy, stages: Sequence[str], most: int | None = None
) -> list[Problem]:
    """Write the run's prompts, at most ``most`` of each kind, and hand them out to some stages; return what fails."""
    problems: list[Problem] = []
    counts, seed = run.generate.counts, run.run.seed
    if most is not None:
        counts = PromptCounts(**{kind: min(count, most) for kind, count in counts.model_dump().items()})
    source = "generate.writer" if run.prompts is None else "prompts"
    found = attempt(
        problems, "prompts", source, lambda: run_prompts(run, taxonomy, counts, expected_pairs(run, taxonomy))
    )
    if found is None:
        return problems
    written = found.prompts
    if "merge" in stages:
        chosen, confirm = _trained(run, taxonomy), run.merge.confirm
        attempt(problems, "prompts", "generate.counts", lambda: choose_prompts(written, chosen, confirm))
    if "evaluate" in stages:
        categories, models = taxonomy.categories, [MERGED]
        attempt(
            problems,
            "prompts",
            "generate.counts",
            lambda: plan_evaluation(written, categories, models, set(), run.evaluate.counts, seed),
        )
    return problems


def _trained(run: RunConfig, taxonomy: Taxonomy) -> list[str]:
    """Return the categories that experts are trained for."""
    return [name for name in taxonomy.categories if name in (run.train.categories or taxonomy.categories)]


def attempt(
    problems: list[Problem], what: str, field: str, work: Callable[[], T], within: str | None = None
) -> T | None:
    """Return what ``work`` returns; None, with a problem of the setting ``field``, when it fails in any way.

    ``within`` is the setting of a judge, below which errors of its own settings are named
    ("evaluate.second_judge.settings.sha256").
    """
    try:
        return work()
    except (SafetyError, ClusterError) as error:
        # Errors of a model or a prompt source name their setting in full; others name the kind of thing ("judge", "prompt writer").
        own = error.field if error.field.startswith(("model.", "prompts.")) else field
        if within is not None and error.field.startswith(JUDGE):
            own = f"{within}.{error.field.removeprefix(JUDGE)}"
        problem = Problem(what, own, error.message, error.fix)
    except Exception as error:  # Judges and writers may be a user's own.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        problem = Problem(what, field, f"it does not load ({text[:300]})", f"mend what {field} names, or name another")
    if problem not in problems:
        problems.append(problem)
    return None
