"""The forms in which a model comes: folders, a hub's caches, variants, other VAEs; each loads the same, or says why not."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safety.errors import ArtifactFormatError, ConfigError, SafetyError
from safety.families import ModelConfig, ModelFamily, family_name, hub, load_model
from safety.families.identity import content_hash, model_hash, model_identity
from safety.families.selection import files_read
from safety.families.source import known_here, model_folder
from safety.families.weight_files import listed_parts
from safety.fetchers import Place, fetchers
from tests.support.original_layout import original_vae

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "org/pico"
UNET = "unet/diffusion_pytorch_model.safetensors"


def config(path: object, tmp_path: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(path), cache=tmp_path / "cache", **settings)


def weight(model: ModelFamily) -> torch.Tensor:
    return next(model.denoiser.parameters())


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def as_cache(folder: Path, root: Path) -> Path:
    """Put a folder's files into a hub's cache, as its library does: blobs by their hashes, and links to them."""
    repository = root / f"models--{ID.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in folder.rglob("*"):
        if path.is_file():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            link = repository / "snapshots" / COMMIT / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return repository


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_cached_hub_model_its_cache_and_its_snapshot_are_the_folder(
    folder: Path, hub_cache: Path, tmp_path: Path
) -> None:
    repository = as_cache(folder, hub_cache)
    expected = model_identity(config(folder, tmp_path))
    for path in (ID, repository, repository / "snapshots" / COMMIT):
        for revision in (None, "main", COMMIT, COMMIT[:8]):
            settings = config(path, tmp_path, revision=revision)
            assert known_here(settings)
            assert model_identity(settings) == expected
    assert torch.equal(weight(load_model(config(ID, tmp_path))), weight(load_model(config(folder, tmp_path))))
    with pytest.raises(ConfigError, match=r"model\.revision: .*no snapshot of 'v2'.*" + COMMIT):
        model_folder(config(repository, tmp_path, revision="v2"))


def test_a_damaged_blob_of_a_hub_s_cache_is_found(folder: Path, hub_cache: Path, tmp_path: Path) -> None:
    repository = as_cache(folder, hub_cache)
    blob = (repository / "snapshots" / COMMIT / UNET).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(bytes(data))
    with pytest.raises(ArtifactFormatError, match=f"{blob.name}.*not what the hub's cache names it by"):
        model_identity(config(ID, tmp_path))


class FakeHub(BaseHTTPRequestHandler):
    """The three questions that the hub's library asks, answered from a folder; everything fetched is noted."""

    folder: Path
    fetched: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(f"/api/models/{ID}/tree/"):
            tree = [
                {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": self._hash(n)[:40]}
                for n in names
            ]
            data = json.dumps(tree).encode()
        elif path.startswith(f"/api/models/{ID}"):
            data = json.dumps({"id": ID, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()
        elif path.startswith((f"/{ID}/resolve/{COMMIT}/", f"/{ID}/resolve/main/")):
            name = path.removeprefix(f"/{ID}/resolve/").partition("/")[2]
            data = (self.folder / name).read_bytes()
            headers["ETag"] = f'"{self._hash(name)}"'
            if body:
                self.fetched.append(name)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _hash(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_hub(folder: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    from huggingface_hub import HfApi, constants

    handler = type("Hub", (FakeHub,), {"folder": folder, "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert (
        HfApi().endpoint == address
        or monkeypatch.setattr("huggingface_hub.hf_api.HfApi.endpoint", address, raising=False) is None
    )
    yield handler
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_fetched_once_and_only_what_is_read_of_it(
    folder: Path, fake_hub: type[FakeHub], tmp_path: Path
) -> None:
    expected = model_identity(config(folder, tmp_path))
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "v1-5.safetensors",
        "v1-5.ckpt",
        "safety_checker/model.safetensors",
        # Beside its parts, Stable Diffusion XL has others in other formats, which its index does not list.
        "vae_decoder/config.json",
        "vae_decoder/model.onnx",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never fetched")
    half = {name: tensor.half() for name, tensor in load_file(folder / UNET).items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    assert model_identity(config(ID, tmp_path)) == expected
    fetched = list(fake_hub.fetched)
    assert sorted(fetched) == sorted(set(fetched))
    assert UNET in fetched
    others = ("fp16", "v1-5", "checker", ".bin", "vae_")
    assert not [name for name in fetched if any(other in name for other in others)]
    weights = [name.endswith(".safetensors") for name in fetched]
    assert weights == sorted(weights), "settings first, so a snapshot with its weights is whole"
    load_model(config(ID, tmp_path))
    assert fake_hub.fetched == fetched, "it is read from the cache from then on"
    load_model(config(ID, tmp_path, variant="fp16"))
    assert [name for name in fake_hub.fetched if name not in fetched] == [
        "unet/diffusion_pytorch_model.fp16.safetensors"
    ]


def test_a_hub_is_asked_whether_it_has_a_model_of_which_nothing_is_fetched(fake_hub: type[FakeHub]) -> None:
    assert hub.is_known(ID) is True
    assert hub.is_known("nobody/nothing") is False
    assert fake_hub.fetched == []


def test_a_hub_without_the_model_says_so(fake_hub: type[FakeHub], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="org/other: the hub knows no such model"):
        model_folder(config("org/other", tmp_path))


def test_a_snapshot_whose_download_was_cut_is_finished(
    folder: Path, fake_hub: type[FakeHub], hub_cache: Path, tmp_path: Path
) -> None:
    link = as_cache(folder, hub_cache) / "snapshots" / COMMIT / UNET
    link.resolve().unlink()
    link.unlink()
    assert model_identity(config(ID, tmp_path)) == model_identity(config(folder, tmp_path))
    assert fake_hub.fetched == [UNET]


def test_what_a_tag_stood_for_is_found_without_the_hub(fake_hub: type[FakeHub]) -> None:
    folder = hub.download(ID, "v1", None)
    assert hub.cached_snapshot(hub.cache_folder(ID), "v1") == folder


def test_a_full_disk_is_not_taken_for_a_hub_that_cannot_be_reached(
    fake_hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ConfigError, match=r"org/pico cannot be written into the hub's cache .*HF_HOME"):
        model_folder(config(ID, tmp_path))


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_error_says_how_to_come_by_the_model(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(ConfigError, match="neither a folder here nor in the hub's cache.*hf download"):
        model_folder(config("org/absent", tmp_path))
    assert not known_here(config("org/absent", tmp_path))


def test_a_hub_model_of_pickles_alone_is_not_fetched() -> None:
    names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin", "vae/config.json"]
    with pytest.raises(ArtifactFormatError, match=r"unet: its only weights are .*jobs\.convert"):
        files_read(names, None)


def test_variants_of_which_none_is_preferred_are_not_chosen_from_unasked() -> None:
    names = ["model_index.json", *(f"unet/diffusion_pytorch_model.{each}.safetensors" for each in ("ema", "non_ema"))]
    with pytest.raises(ArtifactFormatError, match="unet: it has the variants ema, non_ema"):
        files_read(names, None)
    assert files_read(names, "ema") == names[:2]


def test_of_a_repository_of_checkpoints_none_is_fetched_as_a_vae() -> None:
    assert files_read(["README.md", "dream.safetensors", "photo-v5.safetensors"], None) == []


PART = ["config.json", "model.bin"]


@pytest.mark.parametrize(
    ("weights", "variant", "read"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.safetensors"], "fp16", ["model.safetensors"]),
        (["model.fp16.safetensors", "model.non_ema.safetensors"], None, ["model.fp16.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
            None,
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["model.safetensors", "model-00001-of-00001.fp16.safetensors", "model.safetensors.index.fp16.json"],
            "fp16",
            ["model-00001-of-00001.fp16.safetensors", "model.safetensors.index.fp16.json"],
        ),
        (
            ["model.safetensors", "model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
            "fp16",
            ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
        ),
    ],
)
def test_what_is_fetched_is_what_a_folder_s_reading_would_choose(
    weights: list[str], variant: str | None, read: list[str]
) -> None:
    names = ["model_index.json", "README.md", "x.safetensors", "../out.json", "safety_checker/config.json"]
    names += ["part//config.json", "./part/config.json", "part/._config.json", "part/other-tool.safetensors"]
    found = files_read([*names, *(f"part/{name}" for name in (*PART, *weights))], variant)
    assert found == ["model_index.json", "README.md", "part/config.json", *(f"part/{name}" for name in read)]


def test_what_is_not_read_is_neither_hashed_nor_fetched(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder_3": [None, None]}))
    before = model_hash(folder)
    others = ("vae/other_tool.safetensors", "unet/._config.json", "text_encoder_3/config.json", "more/config.json")
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not read")
    assert model_hash(folder) == before
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert not set(others) & set(files_read(names, None, listed_parts(index)))
    load_model(config(folder, folder.parent))


NOWHERE = ["~nobody-here/x", "models/sd--15", "models/sd..15", "x" * 5000, "x\0y", "models/x/y"]


@pytest.mark.parametrize("path", NOWHERE, ids=range(len(NOWHERE)))
def test_a_path_that_is_no_form_of_a_model_is_a_known_error(tmp_path: Path, path: str) -> None:
    for look in (family_name, model_folder):
        with pytest.raises(ConfigError) as refused:
            look(config(path, tmp_path))
        assert refused.value.field == "model.path"


def test_a_folder_with_snapshots_of_its_own_is_no_cache(folder: Path, tmp_path: Path) -> None:
    (folder / "snapshots").mkdir()
    assert model_folder(config(folder, tmp_path)) == folder


def test_a_cache_that_cannot_be_written_is_a_known_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"model\.cache: .*cannot be made"):
        model_folder(config(folder, tmp_path, vae=str(folder)))


def test_a_variant_is_read_where_a_part_has_it(folder: Path, tmp_path: Path) -> None:
    plain = load_file(folder / UNET)
    save_file(
        {name: (t + 1).half() for name, t in plain.items()}, folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    settings = config(folder, tmp_path, variant="fp16")
    found, without = load_model(settings), load_model(config(folder, tmp_path))
    name = next(iter(dict(without.denoiser.named_parameters())))
    assert torch.equal(dict(found.denoiser.named_parameters())[name], (plain[name] + 1).half().float())
    assert model_identity(settings) != model_identity(config(folder, tmp_path))
    assert model_folder(settings) == model_folder(settings)
    with pytest.raises(ConfigError, match=r"model\.variant: .*no weights of the variant 'bf16'.*use one of: fp16"):
        model_folder(config(folder, tmp_path, variant="bf16"))


def test_fp16_alone_is_read_without_being_named(folder: Path, tmp_path: Path) -> None:
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = folder / part / f"{stem}.safetensors"
        save_file(
            {n: t.half() if t.is_floating_point() else t for n, t in load_file(path).items()},
            path.with_name(f"{stem}.fp16.safetensors"),
            metadata={"format": "pt"},
        )
        path.unlink()
    for variant in (None, "fp16"):
        model = load_model(config(folder, tmp_path, variant=variant))
        assert weight(model).dtype == torch.float32
        model.encode_text(["a house"])


@pytest.fixture
def other_vae(folder: Path, tmp_path: Path) -> Path:
    other = Path(shutil.copytree(folder / "vae", tmp_path / "other-vae"))
    path = other / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return other


@pytest.mark.parametrize("form", ["folder", "model", "file", "single file"])
def test_another_vae_is_taken_in_any_form(folder: Path, other_vae: Path, tmp_path: Path, form: str) -> None:
    weights = load_file(other_vae / "diffusion_pytorch_model.safetensors")
    place = other_vae
    if form == "model":
        place = Path(shutil.copytree(folder, tmp_path / "whole"))
        shutil.rmtree(place / "vae")
        shutil.copytree(other_vae, place / "vae")
    elif form == "file":
        place = other_vae / "diffusion_pytorch_model.safetensors"
    elif form == "single file":
        place = tmp_path / "vae-ft.safetensors"
        original = {n.removeprefix("first_stage_model."): t.contiguous() for n, t in original_vae(weights, 3).items()}
        save_file(original, place)
    settings = config(folder, tmp_path, vae=str(place))
    found = load_model(settings).pipeline.vae.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    plain = model_identity(config(folder, tmp_path))
    assert model_identity(settings) != plain
    assert model_identity(config(folder, tmp_path, vae=str(folder))) == plain, "its own VAE changes nothing"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scaling_factor": 0.13025}, "scaling_factor 0.13025, and the model's own VAE 0.5"),
        ({"latent_channels": 16}, "latent_channels 16"),
        ({"shift_factor": 0.1}, "shift_factor 0.1"),
        ({"block_out_channels": [8, 16]}, "one latent of 2 pixels, and the model's own VAE of 4"),
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    ],
)
def test_a_vae_for_other_latents_is_refused(
    folder: Path, other_vae: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    path = other_vae / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(ConfigError, match=named) as refused:
        model_folder(config(folder, tmp_path, vae=str(other_vae)))
    assert refused.value.field == "model.vae"


def test_what_is_no_vae_is_refused_and_its_own_setting_named(folder: Path, other_vae: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    weights = load_file(other_vae / "diffusion_pytorch_model.safetensors")
    name = "decoder.conv_in.weight"
    save_file({**weights, name: weights[name].repeat(1, 4, 1, 1)}, tmp_path / "channels.safetensors")
    save_file(
        {key: t for key, t in weights.items() if key != "decoder.conv_out.bias"}, tmp_path / "lacking.safetensors"
    )
    for vae, named in (
        ("empty", "it is no VAE"),
        ("absent", "there is nothing"),
        ("lora.safetensors", "lacks a whole network"),
        ("channels.safetensors", "cannot be loaded"),
        ("lacking.safetensors", "lacks 1 weights of the vae, such as decoder.conv_out.bias|lacks weights of one"),
    ):
        with pytest.raises(SafetyError, match=named) as refused:
            model_folder(config(folder, tmp_path, vae=str(tmp_path / vae)))
        assert refused.value.field == "model.vae"


def test_a_revision_is_of_the_model_and_not_of_another_vae(folder: Path, hub_cache: Path, tmp_path: Path) -> None:
    repository = as_cache(folder, hub_cache)
    other = Path(shutil.copytree(repository, hub_cache / "models--org--vae", symlinks=True))
    (other / "snapshots" / COMMIT).rename(other / "snapshots" / COMMIT[::-1])
    (other / "refs" / "main").write_text(COMMIT[::-1])
    found = model_identity(config(ID, tmp_path, revision=COMMIT, vae="org/vae"))
    assert found == model_identity(config(folder, tmp_path)), "it is the model's own"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_values_that_are_no_numbers_are_found_at_the_load_and_named(folder: Path, tmp_path: Path, part: str) -> None:
    [path] = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        ArtifactFormatError, match=rf"{part}: its tensor \S*{name.rpartition('.')[0]}.* not finite in torch.float32"
    ):
        load_model(config(folder, tmp_path))


def test_a_weight_too_large_for_the_type_is_named(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / UNET)
    weights["conv_in.bias"][0] = 1e5
    save_file(weights, folder / UNET, metadata={"format": "pt"})
    load_model(config(folder, tmp_path))
    with pytest.raises(
        ArtifactFormatError, match=r"conv_in\.bias has values that are not finite in torch\.float16.*model\.dtype"
    ):
        load_model(config(folder, tmp_path, dtype="float16"))


def test_the_identity_is_of_the_content_and_of_the_type_of_number(folder: Path, tmp_path: Path) -> None:
    first = model_identity(config(folder, tmp_path))
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert model_identity(config(moved, tmp_path, device="cuda", family="stable-diffusion")) == first
    assert model_identity(config(folder, tmp_path, dtype="float16")) != first
    assert first.sha256 == model_hash(folder)


def test_a_large_file_s_hash_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safety.families import identity

    read: list[Path] = []
    monkeypatch.setattr(identity, "LARGE", 4)
    monkeypatch.setattr(
        identity, "file_hash", lambda path: read.append(path) or hashlib.sha256(path.read_bytes()).hexdigest()
    )
    file, kept = tmp_path / "weights", tmp_path / "kept"
    file.write_bytes(b"12345")
    assert content_hash(file, kept) == content_hash(file, kept) == hashlib.sha256(b"12345").hexdigest()
    assert len(read) == 1
    file.write_bytes(b"54321")
    assert content_hash(file, kept) == hashlib.sha256(b"54321").hexdigest()
    [note] = kept.iterdir()
    note.write_text("not json")
    assert content_hash(file, kept) == hashlib.sha256(b"54321").hexdigest()
    assert len(read) == 3


def test_an_address_is_fetched_by_its_scheme_s_fetcher(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Place, list[str]]] = []
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def fetch(place: Place, choose: Any) -> Path:
        asked.append((place, choose(names)))
        return folder

    monkeypatch.setitem(fetchers, "mem", fetch)
    names += ["vae_decoder/config.json", "vae_decoder/model.onnx"]  # as beside Stable Diffusion XL
    settings = config("mem://bucket/prefix", tmp_path, endpoint="http://somewhere")
    assert not known_here(settings)
    assert family_name(settings) == "stable-diffusion"
    place = Place("mem://bucket/prefix", "http://somewhere", None, tmp_path / "cache" / "fetched")
    assert asked == [(place, ["model_index.json"])], "of its files the index alone says what it is"
    assert model_identity(settings) == model_identity(config(folder, tmp_path))
    [_, (again, chosen)] = asked
    assert again == place
    assert set(chosen) == set(names[:-2])
    with pytest.raises(ConfigError, match="nothing here fetches gopher://"):
        model_folder(config("gopher://x/y", tmp_path))


def test_a_pickle_at_an_address_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetchers, "mem", lambda *_: pytest.fail("it was fetched"))
    for use in (family_name, model_folder):
        with pytest.raises(ArtifactFormatError, match=r"v1-5\.ckpt: it is pickled.*jobs\.convert"):
            use(config("mem://bucket/models/v1-5.ckpt", tmp_path))


def test_a_copy_that_was_deleted_meanwhile_is_fetched_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(place: Place, _: Any) -> Path:
        copy = place.cache / "copy"
        return copy if copy.is_dir() else Path(shutil.copytree(folder, copy))

    monkeypatch.setitem(fetchers, "mem", fetch)
    settings = config("mem://bucket/deleted", tmp_path)
    first = model_hash(model_folder(settings))
    shutil.rmtree(settings.cache)
    assert family_name(settings) == "stable-diffusion"
    shutil.rmtree(settings.cache)
    assert model_hash(model_folder(settings)) == first


@pytest.mark.parametrize("settings", [{"prediction": "epsilon"}, {"settings": "/anywhere"}])
def test_a_prediction_and_settings_are_for_single_files(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(ConfigError, match=rf"model\.{name}: .*leave the setting out"):
        model_folder(config(folder, tmp_path, **settings))
