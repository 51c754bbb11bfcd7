"""Artifacts: folders of files with a manifest that is written last, only if absent, and verified at each read."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cluster.errors import AlreadyPublished, CorruptArtifact, InvalidArtifactFolder, UnsafeStore
from cluster.store.config import StoreConfig
from cluster.store.folder import FolderObjects
from cluster.store.limits import limit_of
from cluster.store.local_copy import PARTIAL, VerifiedFiles
from cluster.store.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    check_name,
    describe,
    dump_manifest,
    hash_bytes,
    hash_file,
    parse_manifest,
)
from cluster.store.objects import LostRace, Objects, Versioned
from cluster.store.s3 import S3Objects
from cluster.store.s3_errors import CONDITIONAL_STORES
from cluster.store.signatures import Signer, TrustedKeys
from cluster.store.suspects import note_suspect

logger = logging.getLogger(__name__)

REBUILD = "run the stage that makes it again"
ALL_FILES = ("*",)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_objects(config: StoreConfig) -> Objects:
    """Return the objects of the config's endpoint or, without one, of its folder."""
    return FolderObjects(config) if config.endpoint is None else S3Objects(config)


class ArtifactStore:
    """Publishes and fetches artifacts; it keeps the contract of ``Objects`` too, by those that it is made of.

    The keys of files contain the hash of their content, so two publishers of one id never mix their files, and an
    artifact is visible only once its manifest, the last write, exists.

    A publisher that loses, or dies before its manifest, leaves its files behind. They stay: no manifest names them, and
    deleting them could hit a third publisher of the same content. ``discard`` deletes them with the artifact, and
    ``prune`` without it.
    """

    def __init__(self, config: StoreConfig) -> None:
        """Open the store of a config; nothing is asked of it yet."""
        self.objects = open_objects(config)

    @property
    def config(self) -> StoreConfig:
        """The store's config, with which another process opens the same store."""
        return self.objects.config

    def url(self, key: str = "") -> str:
        """Return a key's address, for people."""
        return self.objects.url(key)

    def ensure_bucket(self) -> None:
        """Create the bucket, or the folder, when it does not exist."""
        self.objects.ensure_bucket()

    def check(self) -> None:
        """Raise the error that explains why the store cannot be used; return when it can."""
        self.objects.check()

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the store's clock is ahead of this machine's, accurate to a second."""
        return self.objects.clock_ahead_s()

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, or None when it does not exist."""
        return self.objects.read(key)

    def read_versioned(self, key: str) -> Versioned | None:
        """Return an object's bytes, ETag and age, or None when it does not exist."""
        return self.objects.read_versioned(key)

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write an object as a whole; raise LostRace when a condition does not hold."""
        self.objects.write(key, data, if_absent=if_absent, if_match=if_match)

    def upload(self, key: str, path: str) -> None:
        """Store a copy of a file as an object."""
        self.objects.upload(key, path)

    def download(self, key: str, path: str, limit: int | None = None) -> bool:
        """Copy an object to a file; return False when the object does not exist."""
        return self.objects.download(key, path, limit)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""
        return self.objects.keys(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of the objects whose keys begin with a prefix, by key, without reading one."""
        return self.objects.sizes(prefix)

    def delete(self, key: str) -> None:
        """Delete an object; it is no error when it does not exist."""
        self.objects.delete(key)

    def probe_conditional_writes(self) -> None:
        """Raise UnsafeStore when a write succeeds although its condition, on absence or on a version, does not hold."""
        key = f"probe/{secrets.token_hex(8)}"
        self.write(key, b"first")
        try:
            if self._overwrites(key, if_absent=True) or self._overwrites(key, if_match=f'"{"0" * 32}"'):
                raise UnsafeStore(
                    "the store overwrote an object although the write's condition did not hold",
                    field="store.endpoint",
                    fix=CONDITIONAL_STORES,
                )
        finally:
            self.delete(key)

    def _overwrites(self, key: str, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        try:
            self.write(key, b"second", if_absent=if_absent, if_match=if_match)
        except LostRace:
            return False
        return True

    def _folder_key(self, kind: str, artifact_id: str) -> str:
        # Local folders get these names too, and an id may come from another writer, for example from a pointer.
        if not (NAME.fullmatch(kind) and NAME.fullmatch(artifact_id)):
            raise CorruptArtifact("it is not the name of an artifact", field=f"{kind}/{artifact_id}", fix=REBUILD)
        return f"artifacts/{kind}/{artifact_id}"

    def where(self, kind: str, artifact_id: str) -> str:
        """Return the address of an artifact's files, for people."""
        return self.url(self._folder_key(kind, artifact_id))

    def _file_key(self, kind: str, artifact_id: str, name: str, entry: FileEntry) -> str:
        return f"{self._folder_key(kind, artifact_id)}/files/{entry.sha256[:16]}/{name}"

    def add(self, kind: str, artifact_id: str, name: str, data: bytes) -> FileEntry:
        """Store one file of an artifact that is still being made; return its size and hash, by which ``put`` names it.

        Its key holds its hash, so it meets no other writer's file; it is no part of the artifact before the manifest is.
        Many processes may each add what they made, and none sends it to the publisher.

        Raises:
            InvalidArtifactFolder: An artifact may not have a file of this name or format.
        """
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidArtifactFolder(str(error), field=f"{kind}/{artifact_id}", fix="name it otherwise") from None
        entry = hash_bytes(data)
        self.write(self._file_key(kind, artifact_id, name, entry), data)
        return entry

    def put(
        self,
        kind: str,
        artifact_id: str,
        folder: Path,
        *,
        config: Mapping[str, Any],
        seed: int,
        parents: Sequence[str] = (),
        stored: Mapping[str, FileEntry] | None = None,
    ) -> Manifest:
        """Publish a folder, together with files that ``add`` has stored; the first of several publishers wins.

        Returns:
            The manifest in the store: this one, or an earlier publisher's of the same content.

        Raises:
            AlreadyPublished: another publisher put other content under this id.
            CorruptArtifact: a file of ``stored`` is not there, or has another size.
            InvalidArtifactFolder: there are no files, too many, or one whose name or format an artifact may not have.
        """
        manifest = describe(
            kind, artifact_id, folder, config=dict(config), seed=seed, parents=tuple(parents), stored=stored
        )
        place, data = f"{self._folder_key(kind, artifact_id)}/{MANIFEST}", dump_manifest(manifest)
        if len(data) > (limit := limit_of(place)).size:
            # Written, it could never be read.
            raise InvalidArtifactFolder(
                f"the manifest of its {len(manifest.files)} files has {len(data)} bytes, more than {limit.kind} may have "
                f"({limit.size})",
                field=f"{kind}/{artifact_id}",
                fix="put more into each file, or divide it into several artifacts",
            )
        for name in sorted(set(manifest.files) - set(stored or {})):
            self.upload(self._file_key(kind, artifact_id, name, manifest.files[name]), str(folder / name))
        lost = self.lost_files(kind, artifact_id, stored or {})
        if lost:
            raise CorruptArtifact(
                f"{len(lost)} of its files are not in the store as they were written",
                field=f"{kind}/{artifact_id}/{lost[0]}",
                fix=REBUILD,
            )
        try:
            self.write(place, data, if_absent=True)
        except LostRace:
            winner = self.manifest(kind, artifact_id)
            if winner is None or winner.files != manifest.files:
                raise AlreadyPublished(
                    "it is published with other content",
                    field=f"{kind}/{artifact_id}",
                    fix="use what is published, or another id",
                ) from None
            return winner
        return manifest

    def manifest(self, kind: str, artifact_id: str) -> Manifest | None:
        """Return an artifact's manifest, or None when it is not published; raise CorruptArtifact when unreadable."""
        data = self.read(f"{self._folder_key(kind, artifact_id)}/{MANIFEST}")
        return None if data is None else parse_manifest(data, kind, artifact_id)

    def sign(self, kind: str, artifact_id: str, signer: Signer, files: Mapping[str, str]) -> str:
        """Sign an artifact that is published with just these files, by name and SHA-256; return the key's id.

        Raises:
            CorruptArtifact: it is not published, or with other files than the signer has made.
        """
        data = self._manifest_bytes(kind, artifact_id)
        found = {name: entry.sha256 for name, entry in parse_manifest(data, kind, artifact_id).files.items()}
        if found != dict(files):
            raise CorruptArtifact(
                "it is published with other files than this run made, and is not signed",
                field=f"{kind}/{artifact_id}",
                fix="find out who wrote it; delete it and run the job again",
            )
        return signer.sign(self.objects, self._folder_key(kind, artifact_id), data)

    def _manifest_bytes(self, kind: str, artifact_id: str) -> bytes:
        data = self.read(f"{self._folder_key(kind, artifact_id)}/{MANIFEST}")
        if data is None:
            raise CorruptArtifact("it is not published", field=f"{kind}/{artifact_id}", fix=REBUILD)
        return data

    def _known(self, kind: str, artifact_id: str, trusted: TrustedKeys | None = None) -> Manifest:
        data = self._manifest_bytes(kind, artifact_id)
        manifest = parse_manifest(data, kind, artifact_id)
        if trusted is not None:
            trusted.verify(self.objects, self._folder_key(kind, artifact_id), data)
        return manifest

    def lost_files(self, kind: str, artifact_id: str, files: Mapping[str, FileEntry]) -> list[str]:
        """Return those names of an artifact's files of which the store has no object of the right size.

        One listing tells it and nothing is read: a file's content is verified where it is fetched.
        """
        sizes = self.sizes(f"{self._folder_key(kind, artifact_id)}/files/") if files else {}
        return [
            name
            for name, entry in files.items()
            if sizes.get(self._file_key(kind, artifact_id, name, entry)) != entry.size
        ]

    def fetch(
        self,
        kind: str,
        artifact_id: str,
        folder: Path,
        trusted: TrustedKeys | None = None,
        *,
        files: Iterable[str] = ALL_FILES,
        verified: VerifiedFiles | None = None,
    ) -> Path:
        """Download an artifact's files to ``folder`` and verify each; correct files that are already there are kept.

        Args:
            kind: The artifact's kind.
            artifact_id: Its id.
            folder: A local folder, made when it does not exist.
            trusted: Keys of which one must have signed the artifact; None: hashes are enough.
            files: Patterns of the names that are wanted, such as ``latents/hate/*``; a star stands for slashes too.
            verified: The record of what was verified in ``folder``, so that it is not read again; None: read all. With
                it the folder is a copy of this artifact alone, and files of an earlier making are deleted.

        Raises:
            CorruptArtifact: a file is missing or does not match its size and SHA-256, which is noted for the stage that
                makes the artifact (``cluster.store.suspects``).
            UntrustedArtifact: none of the trusted keys has signed it.
        """
        manifest = self._known(kind, artifact_id, trusted)
        folder.mkdir(parents=True, exist_ok=True)
        patterns = tuple(files)
        for name, entry in manifest.files.items():
            if not any(fnmatchcase(name, pattern) for pattern in patterns):
                continue
            target = folder / name
            if verified.holds(name, entry) if verified else target.is_file() and hash_file(target) == entry:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # The name is unique to this call: several actors of a host may fetch into one folder.
            partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}{PARTIAL}")
            try:
                self._download(manifest, name, entry, partial)
                partial.replace(target)
            except CorruptArtifact:
                note_suspect(self.objects, kind, artifact_id, name)
                raise
            finally:
                partial.unlink(missing_ok=True)
            if verified:
                verified.note(name, entry)
        if verified:
            verified.drop_others(manifest.files)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        return folder

    def _download(self, manifest: Manifest, name: str, entry: FileEntry, target: Path) -> None:
        field = f"{manifest.kind}/{manifest.id}/{name}"
        try:
            present = self.download(self._file_key(manifest.kind, manifest.id, name, entry), str(target), entry.size)
        except CorruptArtifact as error:
            raise CorruptArtifact(error.message, field=field, fix=REBUILD) from None
        if not present:
            raise CorruptArtifact("the file is missing", field=field, fix=REBUILD)
        found = hash_file(target)
        if found != entry:
            target.unlink()
            raise CorruptArtifact(
                f"{found.size} bytes with SHA-256 {found.sha256[:12]}..., where the manifest says {entry.size} bytes "
                f"with {entry.sha256[:12]}...",
                field=field,
                fix=REBUILD,
            )

    def read_file(self, kind: str, artifact_id: str, name: str) -> bytes:
        """Return one file of an artifact; raise CorruptArtifact when it is missing or corrupt."""
        entry = self._known(kind, artifact_id).files.get(name)
        if entry is None:
            raise CorruptArtifact("there is no such file", field=f"{kind}/{artifact_id}/{name}", fix=REBUILD)
        return self.read_stored(kind, artifact_id, name, entry)

    def read_stored(self, kind: str, artifact_id: str, name: str, entry: FileEntry) -> bytes:
        """Return a file that ``add`` has stored; raise CorruptArtifact when it is missing or corrupt."""
        data = self.read(self._file_key(kind, artifact_id, name, entry))
        if data is None or hash_bytes(data) != entry:
            raise CorruptArtifact("the file is missing or corrupt", field=f"{kind}/{artifact_id}/{name}", fix=REBUILD)
        return data

    def drop_stored(self, kind: str, artifact_id: str, name: str, entry: FileEntry) -> None:
        """Delete a file that ``add`` has stored and that is corrupt; only for the maker of the artifact."""
        self.delete(self._file_key(kind, artifact_id, name, entry))

    def verify(self, kind: str, artifact_id: str) -> Manifest:
        """Read every file of an artifact against its manifest; raise CorruptArtifact at the first that differs."""
        manifest = self._known(kind, artifact_id)
        self._verify(manifest, manifest.files)
        return manifest

    def verify_file(self, kind: str, artifact_id: str, name: str) -> None:
        """Read one file of an artifact against its manifest; raise CorruptArtifact when it differs, delete its object then.

        A key holds its content's hash, so that an object of other content is of no use to anyone.
        """
        manifest = self._known(kind, artifact_id)
        if name not in manifest.files:
            return
        try:
            self._verify(manifest, [name])
        except CorruptArtifact:
            self.drop_stored(kind, artifact_id, name, manifest.files[name])
            raise

    def _verify(self, manifest: Manifest, names: Iterable[str]) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="verify-"))
        try:
            for name in names:
                self._download(manifest, name, manifest.files[name], scratch / "file")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def prune(self, kind: str, artifact_id: str) -> None:
        """Delete files that publishers left who died or lost; only for the sole publisher, as ``discard`` is."""
        manifest = self._known(kind, artifact_id)
        named = {self._file_key(kind, artifact_id, name, entry) for name, entry in manifest.files.items()}
        for key in set(self.keys(f"{self._folder_key(kind, artifact_id)}/files/")) - named:
            self.delete(key)

    def withdraw(self, kind: str, artifact_id: str) -> None:
        """Delete an artifact's manifest alone, so that its publisher can go on from the files that are whole."""
        self.delete(f"{self._folder_key(kind, artifact_id)}/{MANIFEST}")

    def discard(self, kind: str, artifact_id: str) -> None:
        """Delete an artifact, its manifest first, so that no reader sees a part of it.

        Only for the sole publisher of this artifact, such as the holder of the run's lease: a concurrent publisher
        would lose files.
        """
        self.withdraw(kind, artifact_id)
        for key in self.keys(f"{self._folder_key(kind, artifact_id)}/"):
            self.delete(key)

    def ids(self, kind: str) -> list[str]:
        """Return the ids of the published artifacts of a kind, sorted; other names are reported."""
        keys = self.keys(f"artifacts/{kind}/")
        found = {key.split("/")[2] for key in keys if key.endswith(f"/{MANIFEST}") and key.count("/") == 3}
        for name in found:
            if NAME.fullmatch(name) is None:
                logger.warning("artifacts/%s/%s is not an artifact and is ignored", kind, name)
        return sorted(name for name in found if NAME.fullmatch(name))
