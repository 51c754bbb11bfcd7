"""Files that could run code, leave their folder or spoil a model are refused before they are read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import ClusterError, CorruptArtifact, InvalidArtifactFolder
from cluster.hashing import config_hash
from cluster.store.artifacts import ArtifactStore
from cluster.store.manifest import DIGEST, MANIFEST
from cluster.store.pointer import read_pointer, swap_pointer
from safety.errors import ArtifactFormatError, SafetyError
from safety.families import ModelConfig, load_model
from safety.families.family import model_folder
from safety.lora.files import LORA_FILE, load_lora, save_lora
from safety.lora.weights import LoraLayer, LoraWeights
from safety.release import RELEASE_FILE, BaseModelIdentity, ReleaseInfo, file_hash, model_hash
from serve.config import ServeConfig
from serve.loading import load_engine
from tests.faults.figures import Figures
from tests.support.small_sets import random_lora

pytestmark = [pytest.mark.slow]
POINTER = "aligned"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def refused(figures: Figures) -> Iterator[list[str]]:
    """Collect what was refused, for one line of figures."""
    found: list[str] = []
    yield found
    figures.note(
        "pickle in place of an adapter, a manifest naming ../, NaN, another base, another adapter, other layers",
        f"{len(found)} of {len(found)} refused before use; no pickled code ran",
    )


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path) -> LoraWeights:
    return random_lora(load_model(ModelConfig(path=str(tiny_model_dir))), 1, ("to_q", "to_v"), size=1.0)


@pytest.fixture
def config(store: ArtifactStore, tiny_model_dir: Path) -> ServeConfig:
    return ServeConfig.model_validate(
        {"model": {"path": str(tiny_model_dir)}, "store": store.config.model_dump(), "serve": {"pointer": POINTER}}
    )


@pytest.fixture
def release(tmp_path: Path, adapter: LoraWeights, tiny_model_dir: Path) -> Path:
    """Return the folder of a release that is right in all."""
    folder = tmp_path / "release"
    save_lora(adapter, folder, metadata={})
    describe(folder, model_hash(model_folder(ModelConfig(path=str(tiny_model_dir)))))
    return folder


def describe(folder: Path, base: str) -> None:
    info = ReleaseInfo(
        name="tiny",
        base=BaseModelIdentity(id="tiny", family="stable-diffusion", sha256=base),
        adapter_sha256=file_hash(folder / LORA_FILE),
        judge=None,
        provenance={},
    )
    (folder / RELEASE_FILE).write_text(info.model_dump_json(), encoding="utf-8")


def publish(store: ArtifactStore, folder: Path) -> None:
    store.put("release", "release-1", folder, config={}, seed=0)
    swap_pointer(store, POINTER, read_pointer(store, POINTER), "release-1")


def base_of(folder: Path) -> str:
    return ReleaseInfo.model_validate_json((folder / RELEASE_FILE).read_bytes()).base.sha256


def pickled(folder: Path) -> None:
    """A pickle under the adapter's name, in a release whose hashes are all right."""
    (folder / LORA_FILE).write_bytes(pickle.dumps(Trap(folder.parent / "sprung")))
    describe(folder, base_of(folder))


def not_finite(folder: Path) -> None:
    """An adapter with a NaN, which ``save_lora`` would not write."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = folder / LORA_FILE
    with safe_open(path, "pt") as handle:
        head = handle.metadata()
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path, metadata=head)
    describe(folder, base_of(folder))


def of_another_base(folder: Path) -> None:
    """A release of another base; its adapter cannot even be read, so that whoever reads it first says so."""
    (folder / LORA_FILE).write_bytes(b"never looked at")
    describe(folder, "0" * 64)


def of_other_layers(folder: Path) -> None:
    """An adapter whose layers the base does not have, in a release that claims the base."""
    base = base_of(folder)
    layer = LoraLayer(torch.ones(1, 7), torch.ones(9, 1))
    save_lora(LoraWeights({"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": layer}), folder, metadata={})
    describe(folder, base)


def exchanged(folder: Path) -> None:
    """Another adapter of the right form, which the release does not name."""
    weights = load_lora(folder)
    save_lora(LoraWeights({n: LoraLayer(2 * v.down, v.up) for n, v in weights.items()}), folder, metadata={})


CASES: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "pickle": (pickled, ArtifactFormatError, "not a whole safetensors file"),
    "NaN": (not_finite, ArtifactFormatError, "not finite"),
    "another base": (of_another_base, ArtifactFormatError, "is for the base"),
    "other layers": (of_other_layers, ArtifactFormatError, "in the adapter and"),
    "exchanged": (exchanged, ArtifactFormatError, "is not the one that"),
}


def test_the_release_that_is_spoiled_below_is_served_when_it_is_whole(
    store: ArtifactStore, config: ServeConfig, release: Path
) -> None:
    publish(store, release)
    assert [model.release for model in load_engine(config).models()] == ["release-1"]


@pytest.mark.parametrize("case", CASES)
def test_a_spoiled_adapter_is_refused_before_it_is_served(
    store: ArtifactStore, config: ServeConfig, release: Path, case: str, refused: list[str]
) -> None:
    spoil, error, said = CASES[case]
    spoil(release)
    publish(store, release)
    store.verify("release", "release-1")  # by its manifest there is nothing wrong with it
    with pytest.raises(error, match=said) as caught:
        load_engine(config)
    assert isinstance(caught.value, SafetyError)
    assert caught.value.fix
    assert not (release.parent / "sprung").exists(), "no code of it ran"
    refused.append(case)


def test_a_pickle_that_is_unpickled_would_have_left_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["adapter.bin", "adapter.pt", "deep/adapter.PKL"])
def test_a_pickle_s_own_names_are_not_published(
    store: ArtifactStore, release: Path, name: str, refused: list[str]
) -> None:
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_bytes(pickle.dumps([1]))
    with pytest.raises(InvalidArtifactFolder, match="can run code"):
        publish(store, release)
    assert store.keys("artifacts/") == []
    refused.append(name)


@pytest.mark.parametrize("name", ["../escaped.json", "/tmp/escaped.json", "a/../../escaped.json", "adapter.pkl"])
def test_a_manifest_that_names_what_it_may_not_is_refused_whole(
    store: ArtifactStore, config: ServeConfig, release: Path, tmp_path: Path, name: str, refused: list[str]
) -> None:
    """Its writer knew how to hash it, and put the file where it says."""
    publish(store, release)
    key = f"artifacts/release/release-1/{MANIFEST}"
    document = json.loads(store.read(key) or b"")
    document.pop(DIGEST)
    document["files"][name] = document["files"][RELEASE_FILE]
    document[DIGEST] = config_hash(document)
    store.write(key, json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode())
    (tmp_path / "in").mkdir()
    with pytest.raises(CorruptArtifact, match=r"unsafe file name|can run code"):
        store.fetch("release", "release-1", tmp_path / "in" / "copy")
    with pytest.raises(CorruptArtifact, match=r"unsafe file name|can run code"):
        load_engine(config)
    assert list((tmp_path / "in").iterdir()) == []
    refused.append(name)


@pytest.mark.parametrize("target", ["../release-1", "a/../../../etc", ".hidden", ""])
def test_a_pointer_that_leads_out_of_the_store_is_refused(
    store: ArtifactStore, config: ServeConfig, release: Path, target: str, refused: list[str]
) -> None:
    publish(store, release)
    swap_pointer(store, POINTER, "release-1", target)
    with pytest.raises(ClusterError, match="not the name of an artifact"):
        load_engine(config)
    refused.append(target)
