"""Signatures: what a writer of the store without the key can do, and what openssl says of what the key holder writes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.errors import CorruptArtifact, UntrustedArtifact, WrongKey
from cluster.store.artifacts import ArtifactStore
from cluster.store.manifest import MANIFEST, hash_file
from cluster.store.signatures import CONTEXT, Signer, TrustedKeys
from tests.support.signing import make_keys

PLACE = "artifacts/release/release-1"


class Signed(NamedTuple):
    """A signed artifact, and the two keys."""

    store: ArtifactStore
    private: Path
    public: Path
    key_id: str


def publish(store: ArtifactStore, folder: Path, text: str, artifact_id: str = "release-1") -> dict[str, str]:
    """Publish a folder of one file; return its files' hashes."""
    folder.mkdir()
    (folder / "weights.safetensors").write_text(text)
    store.put("release", artifact_id, folder, config={}, seed=0)
    return {"weights.safetensors": hash_file(folder / "weights.safetensors").sha256}


@pytest.fixture
def signed(store: ArtifactStore, tmp_path: Path) -> Signed:
    private, public = make_keys(tmp_path / "keys")
    files = publish(store, tmp_path / "mine", "mine")
    key_id = store.sign("release", "release-1", Signer.read(private, "release.signing_key"), files)
    return Signed(store, private, public, key_id)


def trusting(*keys: Path) -> TrustedKeys:
    return TrustedKeys.read(keys, "serve.trusted_keys")


def test_the_holder_of_any_trusted_key_is_believed(signed: Signed, tmp_path: Path) -> None:
    _, other = make_keys(tmp_path / "other-keys")
    for keys in ((signed.public,), (other, signed.public)):
        folder = signed.store.fetch("release", "release-1", tmp_path / str(len(keys)), trusting(*keys))
        assert (folder / "weights.safetensors").read_text() == "mine"
    with pytest.raises(
        UntrustedArtifact, match=r"release/release-1: no trusted key has signed it.*release.signing_key"
    ):
        signed.store.fetch("release", "release-1", tmp_path / "refused", trusting(other))
    assert not (tmp_path / "refused").exists()


def test_openssl_verifies_what_is_signed(signed: Signed, tmp_path: Path) -> None:
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(CONTEXT + (signed.store.read(f"{PLACE}/{MANIFEST}") or b""))
    signature.write_bytes(signed.store.read(f"{PLACE}/signatures/{signed.key_id}.ed25519") or b"")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(signed.public), "-rawin"]
    done = subprocess.run(
        [*command, "-in", str(message), "-sigfile", str(signature)], capture_output=True, text=True, timeout=60
    )
    assert "Verified Successfully" in done.stdout, done.stderr


def test_a_writer_without_the_key_gets_nothing_loaded(signed: Signed, tmp_path: Path) -> None:
    """An artifact in its place with hashes that fit passes without keys, and with a key only when that key signed it."""
    store, trusted = signed.store, trusting(signed.public)
    signature = store.read(f"{PLACE}/signatures/{signed.key_id}.ed25519") or b""
    store.discard("release", "release-1")
    publish(store, tmp_path / "forged", "forged")
    assert store.fetch("release", "release-1", tmp_path / "unsigned").is_dir()
    for planted in (signature, b"", b"\0" * 64, signature * 2):  # the right artifact's own signature among them
        store.write(f"{PLACE}/signatures/{signed.key_id}.ed25519", planted)
        with pytest.raises(UntrustedArtifact):
            store.fetch("release", "release-1", tmp_path / "refused", trusted)


def test_a_signature_does_not_fit_another_artifact(signed: Signed, tmp_path: Path) -> None:
    """The same files under another id are another artifact: its manifest says so, and the signature covers that."""
    publish(signed.store, tmp_path / "twin", "mine", "release-2")
    signature = signed.store.read(f"{PLACE}/signatures/{signed.key_id}.ed25519") or b""
    signed.store.write(f"artifacts/release/release-2/signatures/{signed.key_id}.ed25519", signature)
    with pytest.raises(UntrustedArtifact):
        signed.store.fetch("release", "release-2", tmp_path / "refused", trusting(signed.public))


def test_only_what_the_signer_made_is_signed(signed: Signed, tmp_path: Path) -> None:
    """Another writer may have put other files under the id before the signer came."""
    files = publish(signed.store, tmp_path / "other", "other", "release-2")
    signer = Signer.read(signed.private, "release.signing_key")
    for expected in ({"weights.safetensors": "0" * 64}, {}, {**files, "more.json": "0" * 64}):
        with pytest.raises(CorruptArtifact, match="other files than this run made"):
            signed.store.sign("release", "release-2", signer, expected)
    assert not [key for key in signed.store.keys("artifacts/release/release-2/") if "signatures" in key]
    with pytest.raises(CorruptArtifact, match="not published"):
        signed.store.sign("release", "release-3", signer, files)


def test_signing_again_changes_nothing_and_discarding_removes_it(signed: Signed, tmp_path: Path) -> None:
    before = {key: signed.store.read(key) for key in signed.store.keys("artifacts/")}
    files = {"weights.safetensors": hash_file(tmp_path / "mine" / "weights.safetensors").sha256}
    signed.store.sign("release", "release-1", Signer.read(signed.private, "x"), files)
    assert {key: signed.store.read(key) for key in signed.store.keys("artifacts/")} == before
    assert signed.store.ids("release") == ["release-1"]
    signed.store.discard("release", "release-1")
    assert signed.store.keys("artifacts/") == []


def test_files_that_hold_no_such_key_are_known_errors(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path)
    rsa, locked, text = tmp_path / "rsa.pem", tmp_path / "locked.pem", tmp_path / "text.pem"
    openssl = ["openssl", "genpkey", "-quiet"]
    subprocess.run([*openssl, "-algorithm", "rsa", "-out", str(rsa)], check=True, capture_output=True, timeout=60)
    secret = ["-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", str(locked)]
    subprocess.run([*openssl, *secret], check=True, capture_output=True, timeout=60)
    text.write_text("no key")
    for path in (rsa, locked, text, public, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(WrongKey, match=r"^release.signing_key: "):
            Signer.read(path, "release.signing_key")
    for path in (rsa, text, private, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(WrongKey, match=r"^serve.trusted_keys: "):
            trusting(path)
