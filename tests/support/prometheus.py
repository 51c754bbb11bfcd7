"""Reads back what the test session's Ray exports for Prometheus."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

import ray

LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
WAIT_S = 40.0
"""Ray's processes tell their metrics every ten seconds."""

Samples = dict[tuple[str, ...], float]


def exported(name: str, labels: tuple[str, ...], run: str) -> Samples:
    """Return the values of a metric of one run, by these labels; those of several processes are added up."""
    found: Samples = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for metric, told, value in LINE.findall(text):
            tags = dict(LABEL.findall(told))
            if metric == name and tags.get("run") == run:
                key = tuple(tags[label] for label in labels)
                found[key] = found.get(key, 0.0) + float(value)
    return found


def wait_for(name: str, labels: tuple[str, ...], run: str, good: Callable[[Samples], bool]) -> Samples:
    """Return a metric's values once they are as they should be, or as they are when that takes too long."""
    deadline = time.monotonic() + WAIT_S
    while not good(found := exported(name, labels, run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found
