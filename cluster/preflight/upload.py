"""The check of how much ``ray job submit`` would upload."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.preflight.check import Finding, failed, passed, warned
from cluster.ray_private import uploaded_files

MIB = 2**20
RUNTIME_ENV = Path(__file__).parent.parent / "runtime_env.yaml"
WARN_MIB, FAIL_MIB = 50.0, 100.0
LARGEST = 3
"""Files that a finding names."""


def upload_sizes(root: Path, runtime_env: Path = RUNTIME_ENV) -> dict[Path, int]:
    """Return the bytes of each file that a submission with ``runtime_env`` uploads from ``root``, uncompressed."""
    excludes = yaml.safe_load(runtime_env.read_text(encoding="utf-8")).get("excludes") or []
    return {path.relative_to(root): path.stat().st_size for path in uploaded_files(root, excludes)}


def check_upload(root: Path) -> Finding:
    """Fail when the upload would be over the limit; the finding names the largest files."""
    sizes = upload_sizes(root.absolute())
    total = sum(sizes.values()) / MIB
    text = f"ray job submit uploads {total:.0f} MiB in {len(sizes)} files"
    if total <= WARN_MIB:
        return passed(text)
    largest = ", ".join(
        f"{path} ({sizes[path] / MIB:.0f} MiB)" for path in sorted(sizes, key=sizes.__getitem__)[: -LARGEST - 1 : -1]
    )
    status = failed if total > FAIL_MIB else warned
    return status(f"{text}, the largest {largest}", "name what no job reads in .rayignore")
