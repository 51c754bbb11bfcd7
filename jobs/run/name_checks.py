"""The preflight's checks of what a run's YAML names beside what is loaded: folders, files, pointers, addresses, a hub's id.

What is loaded (model, judges, features, prompts) is tried by ``jobs.run.load_checks``. Each problem here has its setting's name.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from cluster.errors import ClusterError
from cluster.preflight.check import Finding, failed, passed, warned
from cluster.preflight.node import write_fault
from cluster.session import LOCAL
from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import read_pointer
from jobs.run.config import RunConfig
from jobs.run.needs import Problem, attempt
from jobs.run.placement import Place, is_cheap, placed_unless_cheap
from jobs.run.places import evaluate_place, generate_place, judge_place, merge_place, serve_place
from safety.embedded import EMBEDDED_MODEL
from safety.errors import ConfigError
from safety.families import hub
from safety.fetchers import is_address
from serve.keys import read_keys

A = TypeVar("A")
B = TypeVar("B")
AWS_REGION = "us-east-1"
ANSWER_TIMEOUT_S, PLACE_TIMEOUT_S = 8.0, 30.0
"""The longest wait for an endpoint's answer, and for a place of the cluster that is to look."""
WRITTEN = {
    "run.output": "name a folder of yours, where reports can be written",
    "model.cache": "name a folder of yours, for models that are fetched or unpacked",
}
"""Settings of folders that a run makes; the store's own check is that of its folder."""
SERVE = "serve"
SECTION_PLACES = {
    "generate": generate_place,
    "judge": judge_place,
    "merge": merge_place,
    "evaluate": evaluate_place,
}
"""Where the files of a section are read; those of the others by the driver."""


def named_problems(run: RunConfig) -> list[Problem]:
    """Return what the settings name and there is none of, as far as this machine and the sections' own places know.

    The endpoint of a model's address is looked at first, by ``endpoint_problems``: nothing can be loaded without it.
    """
    return [
        *model_problems(run),
        *folder_problems(run),
        *file_problems(run),
        *host_problems(run),
    ]


def endpoint_problems(run: RunConfig) -> list[Problem]:
    """Return the S3 endpoint of the model's address where it does not answer those who fetch the model.

    Without it a fetch is tried again for minutes, as it is to be while a store is busy.
    """
    model = run.model
    if not any(is_address(path) for path in (model.path, model.vae or "")):
        return []
    url = model.endpoint or f"https://s3.{model.region or AWS_REGION}.amazonaws.com"
    fault = _at(generate_place(run), connection_fault, url)
    if fault is None:
        return []
    field = "model.path" if model.endpoint is None else "model.endpoint"
    fix = "correct model.endpoint, or name a folder, a .safetensors file or a hub id in model.path"
    return [Problem("names", field, f"{model.path} cannot be fetched: nothing answers at {url} ({fault})", fix)]


def connection_fault(url: str) -> str | None:
    """Return why no HTTP server answers this machine at a URL; None when one does, whatever it says."""
    try:
        # Nothing is sent that a certificate would have to protect, and the store's client has its own.
        httpx.head(url, timeout=ANSWER_TIMEOUT_S, verify=False)
    except httpx.TransportError as error:
        return str(error) or type(error).__name__
    return None


def _at(place: Place, work: Callable[[A], B], argument: A) -> B | None:
    """Return what ``work`` returns at a place; None where the place does not come about, which other checks report."""
    try:
        return placed_unless_cheap(replace(place, timeout_s=PLACE_TIMEOUT_S), work, argument)
    except (ClusterError, ConfigError):
        return None


def model_problems(run: RunConfig) -> list[Problem]:
    """Return the model's settings that name nothing, since the model is of a form that has no such thing."""
    model = run.model
    lies_here = model.path == EMBEDDED_MODEL or Path(model.path).expanduser().exists()
    problems: list[Problem] = []

    def add(field: str, message: str, fix: str) -> None:
        problems.append(Problem("names", field, message, fix))

    if model.revision is not None and (is_address(model.path) or lies_here) and not _is_cache(model.path):
        add(
            "model.revision",
            f"{model.path} has no revisions, so there is no {model.revision!r}",
            "leave it out: it is for hub ids and folders of a hub's cache",
        )
    addresses = [path for path in (model.path, model.vae or "") if is_address(path)]
    for name in ("endpoint", "region"):
        if getattr(model, name) is not None and not addresses:
            add(f"model.{name}", "neither model.path nor model.vae is an s3:// address", "leave it out")
    return problems


def _is_cache(path: str) -> bool:
    return path != EMBEDDED_MODEL and hub.is_cache_folder(Path(path).expanduser())


def folder_problems(run: RunConfig) -> list[Problem]:
    """Return the folders that the run is to write and in which no file can be made on this machine."""
    problems = []
    for field, fix in WRITTEN.items():
        section, _, name = field.partition(".")
        fault = write_fault(Path(getattr(getattr(run, section), name)).expanduser())
        if fault is not None:
            problems.append(Problem("names", field, fault, fix))
    return problems


def file_problems(run: RunConfig) -> list[Problem]:
    """Return the files and folders that settings name for reading and that are not there, each looked for where it is read."""
    problems: list[Problem] = []
    by_section: dict[str, dict[str, Path]] = {}
    keys = run.serve.keys
    # Checks of their own read these, or write there.
    others = {keys, *run.serve.trusted_keys, run.release.signing_key, run.store.data_dir}
    for field, path in named_paths(run):
        if field not in WRITTEN and path not in others:
            by_section.setdefault(field.partition(".")[0], {})[field] = path
    for section, paths in by_section.items():
        place = SECTION_PLACES.get(section)
        missing = missing_paths(paths) if place is None else _at(place(run), missing_paths, paths) or []
        problems += [
            Problem("names", field, f"there is no {paths[field]}", "correct the path, or put the file there")
            for field in missing
        ]
    if keys is not None and is_cheap(serve_place(run)):
        attempt(problems, "names", f"{SERVE}.keys", lambda: read_keys(keys))
    return problems


def named_paths(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield each path in a config with its dotted setting: a part of a list has its number."""
    for name in type(config).model_fields:
        yield from _paths_in(getattr(config, name), f"{prefix}{name}")


def _paths_in(value: Any, field: str) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield field, value
    elif isinstance(value, BaseModel):
        yield from named_paths(value, f"{field}.")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _paths_in(part, f"{field}.{key}")
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _paths_in(part, f"{field}.{number}")


def missing_paths(paths: Mapping[str, Path]) -> list[str]:
    """Return the settings whose path leads nowhere on this machine."""
    return [field for field, path in paths.items() if not path.expanduser().exists()]


def host_problems(run: RunConfig) -> list[Problem]:
    """Return the endpoint's address where it is none of this machine, which a local cluster's Serve would bind."""
    host = run.serve.host
    if run.cluster.address != LOCAL or not is_cheap(serve_place(run)):
        return []
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError as error:
        return [
            Problem(
                "names",
                f"{SERVE}.host",
                f"{host!r} is no address of this machine ({error.strerror or error})",
                "use 127.0.0.1, 0.0.0.0 or an address of this machine",
            )
        ]
    return []


def missing_pointers(run: RunConfig, store: ArtifactStore) -> dict[str, str]:
    """Return the release pointers that the endpoint is to serve, the store does not have and the run does not make."""
    named = {f"{SERVE}.pointer": run.serve.pointer}
    named |= {f"{SERVE}.models.{number}": name for number, name in enumerate(run.serve.models)}
    own = run.release.pointer
    return {field: name for field, name in named.items() if name != own and read_pointer(store, name) is None}


def require_pointer(run: RunConfig, store: ArtifactStore) -> None:
    """Raise ConfigError when the endpoint that ends a whole run would find no release under its pointer."""
    field = f"{SERVE}.pointer"
    name = missing_pointers(run, store).get(field)
    if name is not None:
        raise ConfigError(
            f"the store has no release pointer {name!r}, and the run makes {run.release.pointer!r}",
            field=field,
            fix=f"use {run.release.pointer!r} (release.pointer)",
        )


def check_pointers(run: RunConfig, store: ArtifactStore) -> Finding:
    """Fail for release pointers that the endpoint is to serve and will not find."""
    missing, own = missing_pointers(run, store), run.release.pointer
    if not missing:
        return passed(f"the endpoint serves {', '.join(run.serve.pointers)}; the run makes {own!r}")
    found = "; ".join(f"{field}: the store has no release pointer {name!r}" for field, name in missing.items())
    return failed(found, f"use {own!r} (release.pointer), or publish a release under that name first")


def check_base_model(run: RunConfig) -> Finding:
    """Fail where the release's ``base_model`` is no hub id, or one that the hub does not know or cannot be asked about.

    Who works without a hub on purpose says so (``HF_HUB_OFFLINE``), and is warned.
    """
    named, field = run.release.base_model, "release.base_model"
    if named is None:
        return passed(f"cards name {run.model.path}")
    if hub.HUB_ID.fullmatch(named) is None:
        return failed(
            f"{field}: {named!r} is no id of a hub", "write it as org/name, or leave it out: cards then name model.path"
        )
    if named == run.model.path:
        return passed(f"cards name {named}, the model itself")
    if hub.is_cache_folder(hub.cache_folder(named)):
        return passed(f"cards name {named}, which is in the hub's cache")
    known = hub.is_known(named)
    if known is None:
        told = warned if hub.is_offline() else failed
        return told(
            f"{field}: the hub cannot be asked whether it has {named!r}",
            "check it where there is a network, then set HF_HUB_OFFLINE=1 here; or leave it out: cards then name model.path",
        )
    if not known:
        return failed(
            f"{field}: the hub knows no model {named!r}", "correct it, or leave it out: cards then name model.path"
        )
    return passed(f"cards name {named}, which the hub has")
