"""The authors' CSV, on a public sample where it is at hand, and on small files that are wrong in one way each."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from safety.errors import ArtifactFormatError
from safety.prompts.sources.coprov2 import CoProV2Config, CoProV2Source
from safety.prompts.sources.source import SourceContent

SAMPLE = Path(__file__).parents[5] / "shared" / "data" / "coprov2_sample.csv"
"""Beside the checkout, not in it: its licence is its authors'."""
GOOD = """prompt,image,category
bad thing,u_idx_0000007_0.jpg,Harrasment
"good, thing",s_idx_0000007_0.jpg,Harrasment
bad thing,u_idx_0000007_0.jpg,self-harm
"good, thing",s_idx_0000007_0.jpg,self-harm
worse,u_idx_0000003_0.jpg,Illegal Activity
better,s_idx_0000003_0.jpg,Illegal Activity
"""


def read(folder: Path, data: str | bytes) -> SourceContent:
    path = folder / "coprov2.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return CoProV2Source.read(CoProV2Config(path=path))


def test_labels_and_repeats_are_merged(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert [(row.number, row.labels) for row in found.rows] == [
        (3, ("Illegal Activity",)),
        (7, ("Harrasment", "self-harm")),
    ]
    assert (found.rows[1].prompt, found.rows[1].safe) == ("bad thing", "good, thing")
    assert (found.lines, found.merged) == (6, 4)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("prompt,image,category", "prompt,picture,category", "line 1: no column 'image'"),
        ("u_idx_0000003_0.jpg", "0000003.jpg", "line 6: the image '0000003.jpg'"),
        ("better,s", " ,s", "line 7: the prompt is empty"),
        ("better,s_idx_0000003_0.jpg,Illegal Activity\n", "", "pair 3 has no safe prompt"),
        ("bad thing,u_idx_0000007_0.jpg,self", "new thing,u_idx_0000007_0.jpg,self", "line 4: .* another prompt"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ArtifactFormatError, match=said):
        read(tmp_path, GOOD.replace(old, new))


def test_the_test_files_prompts_stand_alone(tmp_path: Path) -> None:
    data = "prompt,image,category\nbad,0007998_0.jpg,Hate\nworse,0000003_0.jpg,sexual\nbad,0007998_0.jpg,Violence\n"
    found = read(tmp_path, data)
    assert [(row.number, row.prompt, row.safe, row.labels) for row in found.rows] == [
        (3, "worse", None, ("sexual",)),
        (7998, "bad", None, ("Hate", "Violence")),
    ]
    assert (found.lines, found.merged) == (3, 1)


def test_the_public_sample_is_read_whole() -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"the authors' sample is not at {SAMPLE}")
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    found = CoProV2Source.read(CoProV2Config(path=SAMPLE))
    numbers = {line["image"].split("_")[2] for line in lines}
    assert (found.lines, len(found.rows), found.merged) == (len(lines), len(numbers), len(lines) - len(numbers))
    by_prompt = Counter(row.prompt for row in found.rows)
    assert by_prompt == Counter(
        {line["image"]: line["prompt"] for line in lines if line["image"].startswith("u_")}.values()
    )
