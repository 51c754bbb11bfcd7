"""Publishes a merged model: checks it, builds its folder, puts it into the store once, moves the pointer, delivers it."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError
from rich.markup import escape

from cluster.errors import PointerMoved
from cluster.store.pointer import read_pointer, swap_pointer
from cluster.store.signatures import Signer
from jobs.merge.files import truncation_error
from jobs.release.card import Measured, Usage, write_card
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, finished, publish
from jobs.run.base_model import ATTRIBUTION_FILE, DescribedModel, describe_model
from jobs.run.config import RunConfig
from jobs.run.placement import placed
from jobs.run.places import evaluate_place
from safety.errors import ArtifactFormatError
from safety.evaluation.metrics import METRICS_FILE
from safety.families import ModelConfig, ModelFamily, load_model
from safety.images import to_uint8
from safety.judges.judge import JudgeIdentity
from safety.lora.files import LORA_FILE, check_fits, load_lora
from safety.lora.fuse import fused
from safety.lora.kohya import KOHYA_FILE, write_kohya
from safety.lora.weights import LoraWeights
from safety.release import (
    RELEASE_FILE,
    BaseModelIdentity,
    ReleaseInfo,
    file_hash,
)
from safety.rendering import RenderConfig, initial_noise, row_seed
from safety.taxonomy import Taxonomy, with_article

KIND = "release"
FOLDER = "release"
"""The release's folder in a run's output folder."""
CARD_PARTS = {"train", "merge", "consolidate", "model"}
PLACEMENT = ("device", "cache", "endpoint")
"""Settings of a model that say where it runs or lies, and are not for its users."""


def run(context: StageContext, merged: ArtifactRef, report: ArtifactRef | None) -> ArtifactRef:
    """Publish a merge as a release, move the run's pointer to it and deliver it into the run's output folder.

    The same content is published once.

    Args:
        context: The run.
        merged: The merge artifact.
        report: The report that measured it; None publishes it as not measured.

    Raises:
        ArtifactFormatError: The adapter is corrupt, is for another base or changes no image.
        PointerMoved: Another release took the pointer while this one was being published.
        WrongKey: The file of the signing key holds none.
    """
    key_file = context.run.release.signing_key
    signer = None if key_file is None else Signer.read(key_file, "release.signing_key")
    before = read_pointer(context.store, context.run.release.pointer)
    parents = [merged] if report is None else [merged, report]
    with TemporaryDirectory(prefix="safetydpo-release-") as scratch:
        folder = Path(scratch)
        measured = None if report is None else read_metrics(context.folder(report, METRICS_FILE))
        build_folder(context.run, describe_model(context.run), context.folder(merged), parents, measured, folder)
        files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
        settings = {"release": context.run.release.recipe(), "files": files}
        ref = artifact_ref(context, KIND, settings, parents)
        # An endpoint may only read the store, and this stage reads the machine's copy: only here a corrupt file is found.
        if finished(context, ref, in_full=True):
            context.console.print(f"release {ref.id}: already published")
        else:
            check_adapter(context.run, folder / LORA_FILE)
            publish(context, ref, settings, parents, lambda target: _copy(folder, target))
            context.console.print(f"release {ref.id}: published")
    if signer is not None:
        key_id = context.store.sign(ref.kind, ref.id, signer, files)
        context.console.print(f"release {ref.id}: signed with the key {key_id}")
    _move_pointer(context, before, ref.id)
    deliver(context.folder(ref), context.run.run.output / FOLDER)
    return ref


def deliver(release: Path, target: Path) -> None:
    """Copy a verified release to ``target``, in place of an older one; a reader never sees part of it."""
    token = secrets.token_hex(4)
    fresh, old = (target.with_name(f".{target.name}-{token}-{part}") for part in ("new", "old"))
    shutil.copytree(release, fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _move_pointer(context: StageContext, before: str | None, release: str) -> None:
    """Move the run's pointer from ``before``, its value when the stage began; raise PointerMoved when another moved it."""
    name = context.run.release.pointer
    if before == release:
        return
    try:
        swap_pointer(context.store, name, before, release)
    except PointerMoved:
        if read_pointer(context.store, name) != release:
            raise
    context.console.print(escape(f"pointer {name!r}: {before or 'new'} -> {release}"))


def read_metrics(folder: Path) -> Measured:
    """Read a report's ``metrics.json``; raise ArtifactFormatError when it is missing or not of this form."""
    try:
        return Measured.model_validate_json((folder / METRICS_FILE).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ArtifactFormatError(
            f"the report holds no readable {METRICS_FILE}: {error}", field="report", fix="run the evaluation again"
        ) from error


def build_folder(
    run: RunConfig,
    base: DescribedModel,
    merged: Path,
    parents: Sequence[ArtifactRef],
    measured: Measured | None,
    folder: Path,
) -> None:
    """Write a release's files; the same inputs give the same bytes."""
    adapter = merged / LORA_FILE
    if not adapter.is_file():
        raise ArtifactFormatError(f"the merge holds no {LORA_FILE}", field="merged", fix="run the merge again")
    # The file that was measured is published byte for byte.
    shutil.copyfile(adapter, folder / LORA_FILE)
    write_kohya(adapter, folder / KOHYA_FILE, {"release": run.release.name})
    judge = measured.provenance.get("judge") if measured else None
    info = ReleaseInfo(
        name=run.release.name,
        base=BaseModelIdentity(id=run.base_name, family=base.identity.family, sha256=base.identity.sha256),
        adapter_sha256=file_hash(adapter),
        judge=JudgeIdentity.model_validate(judge) if judge else None,
        provenance={"run": run.run.name, "seed": str(run.run.seed), **{parent.kind: parent.id for parent in parents}},
    )
    (folder / RELEASE_FILE).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if base.attribution is not None:
        (folder / ATTRIBUTION_FILE).write_bytes(base.attribution)
    settings = json.loads(run.model_dump_json(include=CARD_PARTS))
    settings["model"] = {key: value for key, value in settings["model"].items() if key not in PLACEMENT}
    taxonomy = run.load_taxonomy()
    use = Usage(
        pipeline=base.pipeline,
        hub_id=run.release.base_model or base.hub_id,
        single_file=base.single_file,
        load=_load_arguments(run.model, base),
        sampler=base.sampler,
        steps=run.evaluate.render.steps,
        guidance=run.evaluate.render.guidance,
        truncation=truncation_error(merged),
    )
    attributed = base.attribution is not None
    card = write_card(info, run.release.licence, settings, measured, taxonomy.notice, use, attributed=attributed)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _load_arguments(model: ModelConfig, base: DescribedModel) -> dict[str, str | None]:
    """Return the arguments by which the stock pipeline loads what the run has loaded."""
    named = {"revision": model.revision, "variant": model.variant} if base.hub_id else {}
    return {name: value for name, value in named.items() if value is not None} | dict.fromkeys(base.absent)


def check_adapter(run: RunConfig, adapter: Path) -> None:
    """Load the adapter onto its base and render with it, as the endpoint will: on a worker, where evaluation renders.

    Raises:
        ConfigError: The model is on a GPU and evaluation's actors have none.
        ImpossibleResources: No node can hold such an actor.
        ArtifactFormatError: It cannot be loaded, is for another base, renders numbers that are not finite, or changes
            no image.
    """
    prompts = run.release.smoke_prompts or _first_concepts(run.load_taxonomy())
    placed(
        evaluate_place(run),
        check_images,
        run.model,
        load_lora(adapter),
        prompts,
        run.evaluate.render,
        run.run.seed,
    )


def check_images(
    config: ModelConfig, weights: LoraWeights, prompts: Sequence[str], render: RenderConfig, seed: int
) -> None:
    """Render with the base model and with the adapter on it, on a worker; raises as ``check_adapter`` does."""
    model = load_model(config)
    check_fits(weights, model)
    base = _render(model, prompts, render, seed)
    with fused(model, weights):
        aligned = _render(model, prompts, render, seed)
    fix = "check the experts' learning curves and the merge's report"
    if not bool(torch.isfinite(aligned).all()):
        raise ArtifactFormatError("the adapter renders images that are not finite", field="merged", fix=fix)
    if torch.equal(to_uint8(base), to_uint8(aligned)):
        raise ArtifactFormatError("the adapter changes no image of the base model", field="merged", fix=fix)


def _render(model: ModelFamily, prompts: Sequence[str], config: RenderConfig, seed: int) -> torch.Tensor:
    """Return images fp32 [B, 3, H, W], not rounded, so that numbers that are not finite are seen."""
    noise = torch.cat([initial_noise(model, row_seed(seed, f"release/{prompt}")) for prompt in prompts])
    conditioning = model.encode_text(list(prompts))
    return model.sample(conditioning, noise, steps=config.steps, guidance=config.guidance)


def _first_concepts(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return a prompt of each category: of its first concept or, where it has none, of its own name."""
    firsts = ((category, taxonomy.in_category(category)) for category in taxonomy.categories)
    named = (with_article(own[0].name, plural=own[0].plural) if own else category for category, own in firsts)
    return tuple(f"a picture of {name}" for name in named)


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
