"""Writes the files that pip installs from, out of ``uv.lock``: ``make lock``.

``cuda.txt`` has what the package needs, with PyPI's torch, which brings CUDA. ``cpu.txt`` has the same with the CPU build
of torch. ``dev.txt`` has what the tests and linters need beside one of them, ``world.txt`` what ``make world`` does. Every
file is held to hashes.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
TORCH_CPU = FOLDER / "torch-cpu.txt"
OF_CUDA = re.compile(r"(nvidia|cuda)-|triton$")
"""Packages that only torch's CUDA build needs."""
ENTRY = re.compile(r"^([a-z0-9][\w.-]*).*(?:\n[ #].*)*\n", re.MULTILINE)
HEADER = "# Written by `make lock` from uv.lock. Install it with: pip install --require-hashes -r {}\n"


def export(*extras: str) -> dict[str, str]:
    """Return the lock's packages with these extras, each as its lines of a requirements file."""
    chosen = [word for extra in extras for word in ("--extra", extra)]
    command = ["uv", "export", "--frozen", "--no-emit-project", "--no-annotate", "--no-header", "--quiet", *chosen]
    text = subprocess.run(command, cwd=FOLDER.parent, check=True, capture_output=True, text=True).stdout
    return {match[1]: match[0] for match in ENTRY.finditer(text)}


def files(runtime: dict[str, str], extras: dict[str, dict[str, str]], torch_cpu: str) -> dict[str, str]:
    """Return the text of each file by its name; an extra's file has what it needs beside the runtime's packages."""
    cpu = {name: entry for name, entry in runtime.items() if not OF_CUDA.match(name)}
    lines = re.sub(r"^#.*\n", "", torch_cpu, flags=re.MULTILINE)
    entries = {
        # First, so that an installation without that build at hand ends before it has fetched anything else.
        "cpu.txt": {"torch": lines, **{name: entry for name, entry in cpu.items() if name != "torch"}},
        "cuda.txt": runtime,
        **{
            f"{extra}.txt": {name: entry for name, entry in found.items() if name not in runtime}
            for extra, found in extras.items()
        },
    }
    return {name: HEADER.format(f"requirements/{name}") + "".join(found.values()) for name, found in entries.items()}


def main() -> None:
    """Write the files."""
    extras = {extra: export(extra) for extra in ("dev", "quantized", "world")}
    for name, text in files(export(), extras, TORCH_CPU.read_text(encoding="utf-8")).items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
