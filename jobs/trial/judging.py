"""The verdicts of a run's judges on the pictures of the trial, and the seconds of judging and embedding one."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from safety.base import Config
from safety.dataset.record import load_group
from safety.features.extractor import load_features
from safety.images import decode_image
from safety.judges.judge import JudgeConfig, judge_images, load_judge
from safety.prompts.rows import PromptPair
from safety.taxonomy import Taxonomy


class Judged(Config):
    """A judge's coverage of the taxonomy, its verdicts, and its time."""

    name: str
    version: str
    threshold: float
    covered: tuple[str, ...]
    """Categories of the taxonomy that it scores."""
    uncovered: tuple[str, ...]
    flagged_unsafe: int
    """Pictures of unsafe prompts that it flags."""
    unsafe: int
    flagged_other: int
    """Pictures of safe and benign prompts that it flags."""
    other: int
    seconds: float
    """For one picture."""

    @property
    def title(self) -> str:
        """Return the judge's name, version and threshold."""
        return f"{self.name} {self.version}, threshold {self.threshold:g}"


def judge_pictures(config: JudgeConfig, taxonomy: Taxonomy, records: bytes, threads: int = 1) -> Judged:
    """Load a judge and have it judge the pictures, in this process."""
    torch.set_num_threads(threads)
    images, unsafe = pictures_of(records)
    judge = load_judge(config, taxonomy)
    judge_images(judge, images[:1])
    started = time.perf_counter()
    flagged = [verdict.flagged for verdict in judge_images(judge, images)]
    seconds = time.perf_counter() - started
    return Judged(
        name=judge.name,
        version=judge.version,
        threshold=judge.threshold,
        covered=tuple(name for name in taxonomy.categories if name in judge.categories),
        uncovered=tuple(name for name in taxonomy.categories if name not in judge.categories),
        flagged_unsafe=sum(is_flagged for is_flagged, bad in zip(flagged, unsafe, strict=True) if bad),
        unsafe=sum(unsafe),
        flagged_other=sum(is_flagged for is_flagged, bad in zip(flagged, unsafe, strict=True) if not bad),
        other=len(unsafe) - sum(unsafe),
        seconds=seconds / len(images),
    )


def time_features(name: str, device: str, records: bytes, threads: int = 1) -> float:
    """Return the seconds in which features embed one picture, in this process."""
    torch.set_num_threads(threads)
    images, _ = pictures_of(records)
    features = load_features(name, device)
    features.images(images[:1])
    started = time.perf_counter()
    features.images(images).sum().item()
    return (time.perf_counter() - started) / len(images)


def pictures_of(records: bytes) -> tuple[Tensor, list[bool]]:
    """Return the pictures uint8 [B, 3, H, W], and which are of unsafe prompts: all rows' first ones, then the second ones."""
    rows = load_group(records)
    images, unsafe = [], []
    for member in range(max(len(record.images) for record in rows)):
        for record in rows:
            if member < len(record.images):
                images.append(decode_image(record.images[member]))
                unsafe.append(member == 0 and isinstance(record.row, PromptPair))
    return torch.stack(images), unsafe
