"""Signatures of artifacts: who vouches for one, where hashes say only that its bytes are whole.

Everybody who may write to the store can write a manifest with hashes that fit. A signature needs a private key that the
store's other writers lack: Ed25519 (RFC 8032) over the artifact's manifest, which names every file by its SHA-256.
``openssl genpkey -algorithm ed25519 -out key.pem`` makes a private key, ``openssl pkey -in key.pem -pubout`` its public one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cluster.errors import UntrustedArtifact, WrongCredentials, WrongKey
from cluster.store.objects import Objects

CONTEXT = b"safetydpo artifact manifest, version 1\n"
"""Begins everything that is signed, so that a signature of this key for another purpose never fits."""
MAKE_KEY = (
    "make one with: openssl genpkey -algorithm ed25519 -out key.pem; its public one with: openssl pkey -in key.pem"
)
MAKE_KEY += " -pubout -out key.pub.pem"


class Signer:
    """Signs manifests with a private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path, field: str) -> Signer:
        """Read an unencrypted PEM file; raise WrongKey, which names the setting ``field``, when it holds no such key."""
        key = _parse(path, field, lambda data: serialization.load_pem_private_key(data, password=None))
        if not isinstance(key, Ed25519PrivateKey):
            raise WrongKey(f"{path} holds no Ed25519 private key", field=field, fix=MAKE_KEY)
        return cls(key)

    def sign(self, store: Objects, folder_key: str, manifest: bytes) -> str:
        """Write this key's signature of a manifest beside it; return the key's id."""
        key_id = _key_id(self._key.public_key())
        store.write(_signature_key(folder_key, key_id), self._key.sign(CONTEXT + manifest))
        return key_id


class TrustedKeys:
    """Public keys, of which one must have signed an artifact."""

    def __init__(self, keys: Sequence[Ed25519PublicKey]) -> None:
        self._keys = {_key_id(key): key for key in keys}

    @classmethod
    def read(cls, paths: Sequence[Path], field: str) -> TrustedKeys:
        """Read PEM files; raise WrongKey, which names the setting ``field``, when one holds no Ed25519 public key."""
        keys = []
        for path in paths:
            key = _parse(path, field, serialization.load_pem_public_key)
            if not isinstance(key, Ed25519PublicKey):
                raise WrongKey(f"{path} holds no Ed25519 public key", field=field, fix=MAKE_KEY)
            keys.append(key)
        return cls(keys)

    def verify(self, store: Objects, folder_key: str, manifest: bytes) -> None:
        """Return when one of the keys signed these very bytes; raise UntrustedArtifact when none did."""
        for key_id, key in self._keys.items():
            try:
                signature = store.read(_signature_key(folder_key, key_id))
            except WrongCredentials:  # what S3 says of an absent object to who may not list
                continue
            if signature is not None and _fits(key, signature, manifest):
                return
        raise UntrustedArtifact(
            f"no trusted key has signed it (trusted: {', '.join(self._keys)})",
            field=folder_key.removeprefix("artifacts/"),
            fix="publish it with release.signing_key, by the holder of one of these keys, or correct serve.trusted_keys",
        )


def _parse(path: Path, field: str, load: Callable[[bytes], Any]) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise WrongKey(
            f"{path} cannot be read: {error.strerror}", field=field, fix="name a readable PEM file"
        ) from None
    except (ValueError, TypeError) as error:  # not PEM, or encrypted
        raise WrongKey(f"{path} holds no key that can be used: {error}", field=field, fix=MAKE_KEY) from None


def _fits(key: Ed25519PublicKey, signature: bytes, manifest: bytes) -> bool:
    try:
        key.verify(signature, CONTEXT + manifest)
    except InvalidSignature:
        return False
    return True


def _key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _signature_key(folder_key: str, key_id: str) -> str:
    return f"{folder_key}/signatures/{key_id}.ed25519"
