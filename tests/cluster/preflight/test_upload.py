"""The files that a submission uploads, against the package that Ray itself makes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from cluster.preflight.check import Status
from cluster.preflight.upload import check_upload, upload_sizes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a.py", "out/big.bin", "docs/x.md", ".git/objects/1", "sub/b.py", "sub/secret.txt", "data/keep.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name * 10)
    (root / ".gitignore").write_text("out/\n")
    (root / ".rayignore").write_text("*.md\n")
    (root / "sub" / ".gitignore").write_text("secret.txt\n")
    return root


def test_the_files_and_sizes_are_those_of_rays_own_package(tree: Path, tmp_path: Path) -> None:
    runtime_env = tmp_path / "runtime_env.yaml"
    runtime_env.write_text("working_dir: .\nexcludes: [data/]\n")
    package = tmp_path / "package.zip"
    excludes = [*get_runtime_env_default_excludes(), "data/"]
    create_package(str(tree), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as packed:
        expected = {Path(info.filename): info.file_size for info in packed.infolist()}
    assert upload_sizes(tree, runtime_env) == expected
    assert {str(path) for path in expected} == {"a.py", "sub/b.py", ".gitignore", ".rayignore", "sub/.gitignore"}


def test_this_repository_is_well_under_the_limit() -> None:
    sizes = upload_sizes(ROOT)
    assert sum(sizes.values()) < 50 * 2**20
    assert check_upload(ROOT).status is Status.PASS
    assert Path("tests/data/pico-taxonomy.yaml") in sizes
    assert Path("safety/emoji/zoo/unet/diffusion_pytorch_model.safetensors") in sizes
    unwanted = {
        path for path in sizes if path.parts[0] in (".git", ".venv", "out", "benchmarks", "docs", ".mypy_cache")
    }
    assert unwanted == set()


@pytest.mark.parametrize(("mib", "status"), [(20, "pass"), (60, "warn"), (101, "fail")])
def test_a_large_file_is_named(tree: Path, mib: int, status: str) -> None:
    with (tree / "weights.safetensors").open("wb") as file:
        file.truncate(mib * 2**20)  # sparse: it takes no space
    found = check_upload(tree)
    assert str(found.status) == status
    assert ("weights.safetensors" in found.found) == (status != "pass")
    if status != "pass":
        assert found.fix == "name what no job reads in .rayignore"
