"""Signing keys, made by the very lines of docs/security.md."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "security.md"


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Return a new private key's file and its public key's."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("openssl ")]
    for line in lines:
        subprocess.run(shlex.split(line), cwd=folder, check=True, capture_output=True, timeout=60)
    return folder / "signing-key.pem", folder / "signing-key.pub.pem"
