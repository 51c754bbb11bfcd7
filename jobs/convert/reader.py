"""The process that opens pickles for ``jobs.convert``: it takes its limits first, and has nothing to lose."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from safety.errors import SafetyError
from safety.families.pickled import read_pickled, write_tensors


def limit(memory: int, seconds: int, largest: int) -> None:
    """Limit this process: bytes of memory beyond what it has now, seconds of CPU, bytes of a file; no core dumps."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    used = pages * resource.getpagesize()
    limits = {
        resource.RLIMIT_DATA: used + memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: largest,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def main() -> None:
    """Read a task from the standard input, convert its files, and write the answer as one line of JSON."""
    task = json.load(sys.stdin)
    limit(task["memory"], task["seconds"], task["largest"])
    answer: dict[str, str] = {}
    try:
        for source, target in task["files"]:
            write_tensors(read_pickled(Path(source)), Path(target))
    except SafetyError as error:
        answer = {"message": error.message, "field": error.field, "fix": error.fix}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
