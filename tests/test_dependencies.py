"""Dependencies: bounded, locked by hash in one set of versions, and installed from that by make, CI and the image."""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from requirements.lock import HEADER, OF_CUDA, TORCH_CPU, files

ROOT = Path(__file__).parent.parent
LOCKS = ("cpu", "cuda", "dev", "quantized", "world")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DECLARED = [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["world"]]
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}


def locked(name: str) -> dict[str, str]:
    """Return the lines of a file of requirements by the packages' names."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.partition("==")[0]: line for line in lines}


def versions(name: str) -> dict[str, str]:
    return {package: re.split(r"[ ;+]", line.partition("==")[2])[0] for package, line in locked(name).items()}


@pytest.mark.parametrize("text", DECLARED)
def test_a_dependency_is_bounded_by_the_policy(text: str) -> None:
    """Below the next major version of the locked one, or the next minor of 0.x; the exceptions are tighter."""
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    tested = Version({**versions("cuda"), **versions("dev"), **versions("world")}[name])
    assert tested in requirement.specifier
    if {one.operator for one in requirement.specifier} == {"=="}:
        return
    (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == "<"]
    if tested.major == 0:
        assert bound in (Version(f"0.{tested.minor + 1}"), Version("1")), text
        assert bound < Version("1") or text in EXTRAS["world"], text
    else:
        assert bound <= Version(str(tested.major + 1)), text


def test_every_package_is_locked_once_by_version_and_hash() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    in_lock = {package["name"]: package.get("version") for package in packages if "registry" in package["source"]}
    assert len(in_lock) == len(packages) - 1, "a package has two versions, or comes from elsewhere"
    for name in LOCKS:
        for line in locked(name).values():
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), f"{name}.txt: {line}"
        found = versions(name)
        assert {package: in_lock[package] for package in found} == found
    assert set(versions("cuda")) | set(versions("dev")) | set(versions("world")) | set(versions("quantized")) == set(
        in_lock
    )
    every = [
        canonicalize_name(Requirement(text).name)
        for text in (*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["world"], *EXTRAS["quantized"])
    ]
    assert set(every) <= set(in_lock)


def test_the_cpus_lock_is_cudas_but_for_torchs_build() -> None:
    cpu, cuda = locked("cpu"), locked("cuda")
    assert next(iter(cpu)) == "torch", "first: an installation without that build at hand ends before it fetches more"
    assert cpu.pop("torch") == locked("torch-cpu")["torch"]
    assert versions("torch-cpu")["torch"] == versions("cuda")["torch"]
    assert {name for name in cuda if OF_CUDA.match(name)} == cuda.keys() - cpu.keys() - {"torch"}
    assert {name: line for name, line in cuda.items() if name in cpu} == cpu


def test_the_files_are_made_of_the_locks_entries() -> None:
    runtime = {"ray": "ray==2 \\\n    --hash=sha256:1\n", "nvidia-x": "nvidia-x==1\n", "torch": "torch==2\n"}
    extras = {"dev": {**runtime, "pytest": "pytest==9\n"}}
    assert files(runtime, extras, TORCH_CPU.read_text(encoding="utf-8").split("==")[0] + "==2+cpu\n") == {
        "cpu.txt": HEADER.format("requirements/cpu.txt") + "torch==2+cpu\n" + runtime["ray"],
        "cuda.txt": HEADER.format("requirements/cuda.txt") + "".join(runtime.values()),
        "dev.txt": HEADER.format("requirements/dev.txt") + "pytest==9\n",
    }


def test_these_tests_run_on_the_locked_versions() -> None:
    expected = {**versions("cuda"), **versions("dev")}
    installed = {
        canonicalize_name(one.name): one.version.partition("+")[0]
        # Not all of sys.path, to which some packages add copies of others that they carry along.
        for one in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    other = {
        name: (installed[name], version)
        for name, version in expected.items()
        if installed.get(name) not in (None, version)
    }
    assert other == {}, "make installs from the lock; make lock takes newer versions into it"


def test_make_ci_and_the_image_install_from_the_lock_alone() -> None:
    makefile, dockerfile = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "Dockerfile"))
    installs = [line for line in makefile.splitlines() if "$(INSTALL) " in line]
    installs += [line for line in dockerfile.splitlines() if "pip install" in line and not line.startswith("#")]
    assert len(installs) == 8
    for line in installs:
        assert "--require-hashes -r requirements/" in line or "--no-deps --no-build-isolation -e ." in line, line
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        steps = [step for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values() for step in job["steps"]]
        commands = [step["run"] for step in steps if "run" in step]
        assert not [c for c in commands if "pip install" in c and c != "pip install uv"], path
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("make test")


def test_the_locked_versions_are_audited() -> None:
    (target,) = re.findall(r"^audit:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "pip-audit" in target
    assert {"requirements/cuda.txt", "requirements/dev.txt"} <= set(target.split())
    workflow = yaml.safe_load((ROOT / ".github/workflows/audit.yml").read_text(encoding="utf-8"))
    assert "schedule" in workflow[True]  # YAML 1.1 reads "on" as a boolean
    assert {"run": "make audit"} in workflow["jobs"]["audit"]["steps"]


def test_every_dependency_is_imported_by_us() -> None:
    sources = [path for room in ("cluster", "jobs", "safety", "serve") for path in (ROOT / room).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for declared in PROJECT["dependencies"]:
        name = Requirement(declared).name
        module = IMPORT_NAMES.get(name, name)
        assert re.search(rf"^\s*(from|import) ([\w.]*\.)?{module}\b", text, re.MULTILINE), f"{name} is not used"
