"""API keys: a file of names, hashes and limits, and the command that makes it.

    python -m serve.keys new --name alice --file keys.yaml     # prints the key, once
    python -m serve.keys revoke --name alice --file keys.yaml
    python -m serve.keys list --file keys.yaml

Only the SHA-256 of a key is kept. A slow hash such as scrypt protects secrets that can be guessed. These keys are 256
random bits, which cannot, and a fast hash adds no latency to requests.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import Field, ValidationError, model_validator
from rich.console import Console

from cluster.errors import EXIT_USER_ERROR
from safety.base import Config
from safety.errors import ConfigError
from serve.errors import KEY_MISSING, KEY_REVOKED, KEY_UNKNOWN, ApiError

logger = logging.getLogger(__name__)

PREFIX = "sdpo-"
KEY_BYTES = 32
BEARER = re.compile(r"bearer +([\x21-\x7e]{1,256})", re.IGNORECASE)
RECHECK_S = 2.0
"""Interval at which the file is checked for new or revoked keys."""


class KeyEntry(Config):
    """One key's entry in the file; the key itself is stored nowhere."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$", description="name of the key's owner; appears in logs"
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the whole key")
    requests_per_minute: int | None = Field(None, ge=1, description="None: no limit")
    images_per_minute: int | None = Field(None, ge=1, description="None: no limit")
    revoked: bool = False


class KeyFile(Config):
    """The file of keys."""

    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> KeyFile:
        names, hashes = {key.name for key in self.keys}, {key.sha256 for key in self.keys}
        if min(len(names), len(hashes)) < len(self.keys):
            raise ValueError("two keys have one name or one hash; take one of them out")
        return self


def read_keys(path: Path) -> KeyFile:
    """Read a key file; raise ConfigError when it is missing or wrong, without repeating its content."""
    fix = "make one with 'python -m serve.keys new', or fix it"
    try:
        return KeyFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", field="serve.keys", fix=fix) from None
    except ValidationError as error:
        problem: Any = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"{path}: {where}: {problem['msg']}", field="serve.keys", fix=fix) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{path} is not YAML in UTF-8", field="serve.keys", fix=fix) from None


class KeyRing:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; raise ConfigError when it is missing or wrong."""
        self._path, self._clock = path, clock
        self._stamp = _stamp(path)
        self._keys = read_keys(path).keys
        self._next_check = clock() + RECHECK_S

    def find(self, authorization: str | None) -> KeyEntry:
        """Return the entry of the key in an Authorization header; raise ApiError 401 or 403."""
        match = BEARER.fullmatch(authorization.strip()) if authorization else None
        if match is None:
            raise ApiError(KEY_MISSING)
        self._refresh()
        asked = hash_key(match[1])
        # Every entry is compared, each in constant time, so that the time reveals nothing of the file.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, asked)]
        if not found:
            raise ApiError(KEY_UNKNOWN)
        if found[0].revoked:
            raise ApiError(KEY_REVOKED)
        return found[0]

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + RECHECK_S
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path).keys
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)


def hash_key(key: str) -> str:
    """Return the hash by which the file knows a key."""
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Keep other commands from changing a file of the folder in the block."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def change_keys(path: Path, change: Callable[[KeyFile], KeyFile]) -> None:
    """Rewrite a key file atomically; a missing file counts as empty."""
    path = path.absolute()
    with _exclusive_lock(path.parent):
        changed = change(read_keys(path) if path.exists() else KeyFile())
        text = yaml.safe_dump(changed.model_dump(mode="json", exclude_none=True), sort_keys=False)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def new_key(path: Path, name: str, requests_per_minute: int | None, images_per_minute: int | None) -> str:
    """Add a key to a file, and return it; raise ConfigError for a name that is taken or not one."""
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    fields = {"requests_per_minute": requests_per_minute, "images_per_minute": images_per_minute}
    try:
        entry = KeyEntry.model_validate({"name": name, "sha256": hash_key(key), **fields})
    except ValidationError as error:
        problem: Any = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(problem["msg"], field=f"--{problem['loc'][0]}", fix="give another value") from None

    def add(file: KeyFile) -> KeyFile:
        if any(known.name == name for known in file.keys):
            raise ConfigError(f"there is a key of {name!r} already", field="--name", fix="give another name")
        return KeyFile(keys=(*file.keys, entry))

    change_keys(path, add)
    return key


def revoke_key(path: Path, name: str) -> None:
    """Mark a key as revoked, so that it gets 403 from then on; raise ConfigError when there is no such key."""

    def mark(file: KeyFile) -> KeyFile:
        if all(key.name != name for key in file.keys):
            raise ConfigError(f"there is no key of {name!r}", field="--name", fix="see 'python -m serve.keys list'")
        keys = (key.model_copy(update={"revoked": True}) if key.name == name else key for key in file.keys)
        return KeyFile(keys=tuple(keys))

    change_keys(path, mark)


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="API keys of the images endpoint")
FileOption = Annotated[Path, typer.Option("--file", help="the key file, named by serve.keys in the run's config")]
NameOption = Annotated[str, typer.Option("--name", help="name of the key's owner")]


@contextmanager
def _reporting_errors() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_USER_ERROR) from None


@app.command()
def new(
    name: NameOption,
    file: FileOption,
    requests_per_minute: Annotated[int | None, typer.Option(help="none: no limit")] = None,
    images_per_minute: Annotated[int | None, typer.Option(help="none: no limit")] = None,
) -> None:
    """Make a key, print it once and keep its hash."""
    with _reporting_errors():
        typer.echo(new_key(file, name, requests_per_minute, images_per_minute))


@app.command()
def revoke(name: NameOption, file: FileOption) -> None:
    """Revoke a key; a running endpoint notices within seconds."""
    with _reporting_errors():
        revoke_key(file, name)


@app.command("list")
def list_keys(file: FileOption) -> None:
    """Print the keys' names and limits."""
    with _reporting_errors():
        for key in read_keys(file).keys:
            limits = f"{key.requests_per_minute or 'any'} requests, {key.images_per_minute or 'any'} images per minute"
            typer.echo(f"{key.name}: {'revoked' if key.revoked else limits}")


if __name__ == "__main__":
    app()
