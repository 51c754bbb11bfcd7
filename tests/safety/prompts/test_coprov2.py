"""The authors' CSV, on a public sample where it is at hand, and on small files that are wrong in one way each."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from safety.errors import ArtifactFormatError
from safety.prompts.coprov2 import read_coprov2

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "coprov2_sample.csv"
"""Beside the checkout, not in it: its licence is its authors'."""
GOOD = """prompt,image,category
bad thing,u_idx_0000007_0.jpg,Harrasment
"good, thing",s_idx_0000007_0.jpg,Harrasment
bad thing,u_idx_0000007_0.jpg,self-harm
"good, thing",s_idx_0000007_0.jpg,self-harm
worse,u_idx_0000003_0.jpg,Illegal Activity
better,s_idx_0000003_0.jpg,Illegal Activity
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "coprov2.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_and_repeats_are_merged(tmp_path: Path) -> None:
    pairs = read_coprov2(write(tmp_path, GOOD))
    assert [(p.pair_id, p.category, p.other_categories) for p in pairs] == [
        ("coprov2-0000003", "illegal activity", ()),
        ("coprov2-0000007", "harassment", ("self-harm",)),
    ]
    assert pairs[1].unsafe_prompt == "bad thing"
    assert pairs[1].safe_prompt == "good, thing"
    assert {p.split for p in read_coprov2(write(tmp_path, GOOD), "test")} == {"test"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("prompt,image,category", "prompt,picture,category", "line 1: no column image"),
        ("u_idx_0000003_0.jpg", "0000003.jpg", "line 6: the image '0000003.jpg'"),
        ("worse,u_idx_0000003_0.jpg,Illegal Activity", "worse,u_idx_0000003_0.jpg,Rude", "line 6: the category 'Rude'"),
        ("better,s", " ,s", "line 7: the prompt is empty"),
        ("better,s_idx_0000003_0.jpg,Illegal Activity\n", "", "pair 3 has no safe prompt"),
        ("bad thing,u_idx_0000007_0.jpg,self", "new thing,u_idx_0000007_0.jpg,self", "line 4: .* another prompt"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ArtifactFormatError, match=said):
        read_coprov2(write(tmp_path, GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD.encode("utf-16"), "no CSV in UTF-8"),
        (GOOD.encode() + "é,u_idx_1_0.jpg,hate".encode("latin-1"), "no CSV in UTF-8"),
        (GOOD.encode() + b'"' + b"x" * 200_000, "no CSV in UTF-8"),
        (b"", "no column"),
        (None, "it cannot be read: No such file"),
    ],
    ids=["UTF-16", "latin-1", "long field", "empty", "missing"],
)
def test_a_file_that_is_no_csv_is_a_known_error(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "prompts.csv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArtifactFormatError, match=said):
        read_coprov2(path)


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"the public sample is not at {SAMPLE}")
def test_the_public_sample_is_read_whole() -> None:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = read_coprov2(SAMPLE)
    images = {row["image"] for row in rows}
    assert len(pairs) == len(images) / 2
    labels = Counter(name for p in pairs for name in (p.category, *p.other_categories))
    assert set(labels) == {"harassment", "illegal activity", "shocking", "violence"}
    assert sum(labels.values()) == len({(r["image"], r["category"]) for r in rows}) / 2
    texts = {row["image"]: row["prompt"].strip() for row in rows}
    for pair in pairs:
        number = pair.pair_id.removeprefix("coprov2-")
        assert texts[f"u_idx_{number}_0.jpg"] == pair.unsafe_prompt
        assert texts[f"s_idx_{number}_0.jpg"] == pair.safe_prompt
