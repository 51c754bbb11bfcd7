"""Exports of a release by the command: each form draws the release's own image in stock diffusers, or is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from cluster.store.artifacts import ArtifactStore
from jobs.command.app import app
from safety.families import ModelConfig, load_model
from safety.lora.files import LORA_FILE, save_lora
from safety.lora.kohya import KOHYA_FILE
from safety.lora.weights import LoraWeights
from tests.support.release_maker import point, publish
from tests.support.small_sets import random_lora

PIXEL = 1.0 / 255.0
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path) -> LoraWeights:
    return random_lora(load_model(ModelConfig(path=str(tiny_model_dir))), 1, size=0.5)


@pytest.fixture
def config(store: ArtifactStore, tiny_model_dir: Path, adapter: LoraWeights, tmp_path: Path) -> Path:
    """Return a run's YAML whose pointer names a published release."""
    publish(store, "release-1", adapter, tiny_model_dir)
    point(store, "aligned", "release-1")
    document = {
        "run": {"name": "tiny", "output": str(tmp_path / "out")},
        "model": {"path": str(tiny_model_dir)},
        "store": store.config.model_dump(mode="json"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture
def export(config: Path) -> Run:
    def run(form: str, output: Path, *more: str) -> Any:
        return CliRunner().invoke(
            app, ["export", "--config", str(config), "--form", form, "--output", str(output), *more]
        )

    return run


def draw(pipeline: StableDiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(2)
    image: np.ndarray = pipeline("a knife", num_inference_steps=3, generator=noise, output_type="np").images[0]
    return image


def stock(base: Path, lora: Path | None = None) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    return pipeline


def test_every_form_draws_the_releases_image(
    export: Run, adapter: LoraWeights, tiny_model_dir: Path, tmp_path: Path
) -> None:
    expected = draw(stock(tiny_model_dir, save_lora(adapter, tmp_path / "adapter", metadata={})))
    assert np.abs(expected - draw(stock(tiny_model_dir))).max() > 10 * PIXEL
    outputs = {
        "diffusers": tmp_path / "plain",
        "kohya": tmp_path / "kohya.safetensors",
        "fused-folder": tmp_path / "fused",
        "fused-file": tmp_path / "fused.safetensors",
    }
    for form, output in outputs.items():
        done = export(form, output)
        assert done.exit_code == 0, done.output
        assert f"{form} -> {output}" in done.output.replace("\n", "")
    # A tiny model has no original layout that diffusers could tell its kind by, but for its own folder's configs.
    single = StableDiffusionPipeline.from_single_file(
        outputs["fused-file"], config=str(tiny_model_dir), local_files_only=True, safety_checker=None
    )
    drawn = {
        "diffusers": draw(stock(tiny_model_dir, outputs["diffusers"])),
        "kohya": draw(stock(tiny_model_dir, outputs["kohya"])),
        "fused-folder": draw(stock(outputs["fused-folder"])),
        "fused-file": draw(single),
    }
    assert {form for form, image in drawn.items() if np.abs(image - expected).max() > PIXEL} == set()


def test_a_release_by_its_id_or_folder_is_exported(
    export: Run, adapter: LoraWeights, store: ArtifactStore, tiny_model_dir: Path, tmp_path: Path
) -> None:
    publish(store, "release-2", adapter.scaled(2.0), tiny_model_dir)
    folder = store.fetch("release", "release-2", tmp_path / "fetched")
    for number, named in enumerate(("release-2", str(folder))):
        output = tmp_path / f"export-{number}"
        done = export("diffusers", output, "--release", named)
        assert done.exit_code == 0, done.output
        assert (output / LORA_FILE).read_bytes() == (folder / LORA_FILE).read_bytes()


def test_what_the_cards_speak_of_lies_beside_them(
    export: Run, adapter: LoraWeights, store: ArtifactStore, tiny_model_dir: Path, tmp_path: Path
) -> None:
    publish(store, "release-3", adapter, tiny_model_dir)
    folder = store.fetch("release", "release-3", tmp_path / "released")
    for name in (KOHYA_FILE, "README.md", "ATTRIBUTION.md"):
        (folder / name).write_text(f"the release's {name}", encoding="utf-8")
    for form in ("diffusers", "fused-folder"):
        done = export(form, tmp_path / form, "--release", str(folder))
        assert done.exit_code == 0, done.output
        assert (tmp_path / form / "ATTRIBUTION.md").read_bytes() == (folder / "ATTRIBUTION.md").read_bytes()
    plain = {path.name for path in (tmp_path / "diffusers").iterdir()}
    assert plain == {path.name for path in folder.iterdir()} - {"manifest.json"}
    card = (tmp_path / "fused-folder" / "README.md").read_text(encoding="utf-8")
    assert "see `ATTRIBUTION.md`" in card
    assert "base_model" not in card.split("---")[1], "the tiny model's path is no id on a hub"


def test_an_export_that_fails_on_its_way_leaves_nothing_and_says_why(
    export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensors: object, path: Path, _metadata: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for module in ("fused_folder", "fused_file"):
        monkeypatch.setattr(f"safety.exports.{module}.save_tensors", full)
    monkeypatch.setattr(Path, "replace", lambda path, _target: full(None, path, None))
    (tmp_path / "empty").mkdir()
    outputs = {"new": "fused-folder", "empty": "fused-folder", "x.safetensors": "fused-file", "y.safetensors": "kohya"}
    for output, form in outputs.items():
        done = export(form, tmp_path / output)
        assert done.exit_code == 2, done.output
        assert "No space left on device. Fix: free some space" in " ".join(done.output.split())
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "empty").iterdir())
    assert not list(tmp_path.glob("*.safetensors*"))


@pytest.mark.parametrize(
    ("form", "output", "more", "said"),
    [
        ("kohya", "taken/file/x.safetensors", (), "taken/file is a file, and no folder"),
        ("diffusers", "new", ("--release", "out/demo/release"), "--release: there is no release.json in out/demo/rel"),
        ("kohya", "lora.pt", (), "--output: lora.pt is no name of a safetensors file"),
        ("kohya", "taken.safetensors", (), "--output: taken.safetensors is there already"),
        ("fused-folder", "taken", (), "--output: taken is there already"),
        ("diffusers", "new", ("--release", "release-9"), "--release: the store has no release 'release-9'"),
    ],
)
def test_what_is_in_the_way_or_not_there_is_named(
    export: Run,
    form: str,
    output: str,
    more: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_bytes(b"mine")
    done = export(form, Path(output), *more)
    assert done.exit_code == 2
    assert said in done.output
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"


def test_a_release_for_another_base_is_refused(
    export: Run, store: ArtifactStore, adapter: LoraWeights, tiny_model_dir: Path, tmp_path: Path
) -> None:
    publish(store, "other", adapter, tiny_model_dir, base_sha256="0" * 64)
    done = export("fused-folder", tmp_path / "fused", "--release", "other")
    assert done.exit_code == 2
    assert "model.path: the release 'tiny' is for the base 'tiny' (000000000000), not" in " ".join(done.output.split())
    assert not (tmp_path / "fused").exists()


def test_nothing_behind_the_pointer_is_a_known_error(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document["store"]["data_dir"] = str(tmp_path / "empty")
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    words = ["export", "--config", str(config), "--form", "kohya", "--output", str(tmp_path / "x.safetensors")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "nothing behind the pointer 'aligned'" in done.output


def test_a_base_that_is_not_there_is_named_before_anything_is_written(
    config: Path, export: Run, tmp_path: Path
) -> None:
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document["model"]["path"] = str(tmp_path / "lost")
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    for form, output in (("fused-folder", "new"), ("kohya", "new.safetensors")):
        done = export(form, tmp_path / output)
        assert done.exit_code == 2
        assert "model.path: no diffusers-format model in" in done.output
        assert not (tmp_path / output).exists()
