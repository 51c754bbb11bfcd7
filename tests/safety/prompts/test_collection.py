"""Prompts from sources: every line is used, merged or refused, and no prompt is in two splits."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safety.errors import ArtifactFormatError, ConfigError
from safety.prompts.card import SourceCard
from safety.prompts.collection import PromptCollection, key_of
from safety.prompts.config import PromptsConfig
from safety.prompts.rows import PromptSet
from safety.prompts.writer import PromptCounts
from safety.taxonomy import Taxonomy

CATEGORIES = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity")
SPELLED = ("Hate", "Harrasment", "Violence", "self-harm", "sexual", "Shocking", "Illegal Activity")
TAXONOMY = Taxonomy(name="seven", version="1", categories=CATEGORIES)
COUNTS = PromptCounts(benign_train=4, benign_validation=2, benign_test=3, benign_text_only=5)


def write(path: Path, header: str, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([header.split(","), *rows])
    return path


def collect(document: dict[str, Any], seed: int = 0) -> tuple[PromptSet, dict[str, SourceCard]]:
    config = PromptsConfig.model_validate(document)
    found = PromptCollection(config, TAXONOMY, COUNTS, seed).collect()
    return found.prompts, {card.file: card for card in found.cards}


@pytest.fixture
def benign(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a quiet street, number {n}\n" for n in range(20)) + "\n  \n")
    return {"source": "lines", "path": str(path)}


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    rows = [[f"unsafe {c} {n}", f"safe {c} {n}", c] for c in CATEGORIES for n in range(20)]
    path = write(tmp_path / "pairs.csv", "bad,good,kind", rows)
    return {"source": "csv", "path": str(path), "prompt": "bad", "safe": "good", "category": "kind"}


def test_every_category_is_split_by_its_shares(pairs: dict[str, Any], benign: dict[str, str]) -> None:
    prompts, cards = collect({"pairs": [pairs], "benign": [benign]})
    for category in CATEGORIES:
        found = {split: len(prompts.in_split(split, category)) for split in ("train", "validation", "test")}
        assert found == {"train": 16, "validation": 2, "test": 2}
    assert {split: len(prompts.benign_in(split)) for split in ("train", "validation", "test", "text_only")} == {
        "train": 4,
        "validation": 2,
        "test": 3,
        "text_only": 5,
    }
    assert cards["captions.txt"].refused == {"empty_prompt": 2, "not_needed": 6}
    assert all(card.lines == card.rows + card.merged + card.refused.total() for card in cards.values())


def test_the_splits_are_a_function_of_the_seed(pairs: dict[str, Any], benign: dict[str, str]) -> None:
    document = {"pairs": [pairs], "benign": [benign]}
    assert collect(document)[0] == collect(document)[0]
    assert collect(document)[0] != collect(document, seed=1)[0]


def test_no_row_depends_on_what_a_file_is_called(pairs: dict[str, Any], benign: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "another name.csv"
    other.write_bytes(Path(pairs["path"]).read_bytes())
    renamed = {**pairs, "path": str(other)}
    assert collect({"pairs": [pairs], "benign": [benign]})[0] == collect({"pairs": [renamed], "benign": [benign]})[0]


def test_pairs_that_share_a_prompt_are_in_one_split(
    pairs: dict[str, Any], benign: dict[str, str], tmp_path: Path
) -> None:
    chain = [["a", "b", "hate"], ["A ", "c", "hate"], ["d", "C", "hate"], ["x", "y", "hate"], ["X", "y", "violence"]]
    other = {**pairs, "path": str(write(tmp_path / "chain.csv", "bad,good,kind", chain))}
    for seed in range(12):
        prompts, cards = collect({"pairs": [pairs, other], "benign": [benign], "validation_share": 0.4}, seed)
        split_of = {pair.unsafe_prompt.casefold(): pair.split for pair in prompts.pairs}
        assert len({split_of[name] for name in ("a", "d")}) == 1
        assert (cards["chain.csv"].recurring, cards["chain.csv"].merged) == (1, 1)
        [merged] = [pair for pair in prompts.pairs if pair.unsafe_prompt == "x"]
        assert (merged.category, merged.other_categories) == ("hate", ("violence",))


@pytest.mark.parametrize("seed", range(20))
def test_a_large_group_that_shares_a_prompt_leaves_the_others_for_every_split(
    seed: int, benign: dict[str, str], tmp_path: Path
) -> None:
    rows = [["the same", f"safe {n}", "hate"] for n in range(30)] + [
        [f"own {n}", f"good {n}", "hate"] for n in range(10)
    ]
    path = write(tmp_path / "pairs.csv", "prompt,safe,kind", rows)
    source = {"source": "csv", "path": str(path), "safe": "safe", "category": "kind"}
    prompts, _ = collect({"pairs": [source], "benign": [benign]}, seed)
    assert {split: len(prompts.in_split(split)) for split in ("train", "validation", "test")} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ([["the same", f"safe {n}", "hate"] for n in range(5)], "validation"),
        ([["alone", "safe", "hate"]], "train"),
        (
            [["a", "b", "violence"], ["a", "c", "hate"], *([f"v {n}", f"s {n}", "violence"] for n in range(3))],
            "validation",
        ),
    ],
)
def test_a_category_that_cannot_be_split_is_named(
    rows: list[list[str]], lost: str, benign: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "pairs.csv", "prompt,safe,kind", rows)
    source = {"source": "csv", "path": str(path), "safe": "safe", "category": "kind"}
    with pytest.raises(ConfigError, match=f"of the category 'hate' leave none for the split '{lost}'") as caught:
        collect({"pairs": [source], "benign": [benign], "test_share": 0.0})
    assert caught.value.field == "prompts.pairs"


def test_pairs_of_a_concept_that_is_held_out_are_held_out(benign: dict[str, str], tmp_path: Path) -> None:
    concepts = [{"name": "kite", "category": "hate", "heldout": True}, {"name": "saw", "category": "hate"}]
    taxonomy = Taxonomy.model_validate({"name": "two", "version": "1", "concepts": concepts})
    rows = [[f"a {name} {n}", f"a bag {name} {n}", "hate", name] for name in ("kite", "saw") for n in range(6)]
    path = write(tmp_path / "pairs.csv", "prompt,safe,kind,concept", rows)
    source = {"source": "csv", "path": str(path), "safe": "safe", "category": "kind", "concept": "concept"}
    config = PromptsConfig.model_validate({"pairs": [source], "benign": [benign]})
    found = PromptCollection(config, taxonomy, COUNTS, 0).collect().prompts
    assert {pair.concept for pair in found.in_split("heldout")} == {"kite"}
    assert len(found.in_split("heldout")) == 6


@pytest.mark.parametrize("side", ["test", "pairs"])
def test_a_prompt_of_both_sides_is_taken_from_one(
    side: str, pairs: dict[str, Any], benign: dict[str, str], tmp_path: Path
) -> None:
    rows = [["Unsafe  hate 3", "hate"], ["safe hate 4", "hate"], ["new", "hate"], ["nothing", "other"], ["", "hate"]]
    test = {"source": "csv", "path": str(write(tmp_path / "test.csv", "prompt,kind", rows)), "category": "kind"}
    prompts, cards = collect({"pairs": [pairs], "test": [test], "benign": [benign], "leaks": side})
    texts = {
        split: {key_of(p) for pair in prompts.in_split(split) for p in pair.prompts} for split in ("train", "test")
    }
    texts["train"] |= {key_of(p) for pair in prompts.in_split("validation") for p in pair.prompts}
    assert texts["train"].isdisjoint(texts["test"])
    assert len(prompts.in_split("test")) == (1 if side == "test" else 3)
    refused = cards["test.csv" if side == "test" else "pairs.csv"].refused
    assert (refused["in_test_and_pairs"], refused["nearly_in_test_and_pairs"]) == (1, 1)
    assert cards["test.csv"].refused["unknown_category"] == 1
    assert cards["test.csv"].unknown_labels == {"other": 1}
    assert all(pair.safe_prompt is None for pair in prompts.in_split("test"))


def test_labels_are_named_where_they_are_spelled_otherwise(benign: dict[str, str], tmp_path: Path) -> None:
    labels = {"one": "HATE, Gewalt", "two": "gewalt", "three": "Self Harm", "four": "Harrasment"}
    rows = [[f"{name} {n}", f"safe {name} {n}", label] for name, label in labels.items() for n in range(3)]
    path = write(tmp_path / "other.csv", "prompt,safe,categories", rows)
    source = {"source": "csv", "path": str(path), "safe": "safe", "category": "categories"}
    source["labels"] = {"Gewalt": "violence"}  # type: ignore[assignment]
    prompts, _ = collect({"pairs": [source], "benign": [benign]})
    assert {p.unsafe_prompt.split()[0]: (p.category, p.other_categories) for p in prompts.pairs} == {
        "one": ("hate", ("violence",)),
        "two": ("violence", ()),
        "three": ("self-harm", ()),
        "four": ("harassment", ()),
    }


def test_a_label_cannot_stand_for_a_category_that_there_is_not(pairs: dict[str, Any], benign: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no category 'gore'") as refused:
        collect({"pairs": [{**pairs, "labels": {"hate": "Violence", "blood": "gore"}}], "benign": [benign]})
    assert refused.value.field == "prompts.pairs.labels"


def test_what_gives_no_row_is_named(pairs: dict[str, Any], benign: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="unknown_category 140 .unknown labels: 'unsafe hate 0'") as refused:
        collect({"pairs": [{**pairs, "category": "bad"}], "benign": [benign]})
    assert refused.value.field == "prompts.pairs"
    with pytest.raises(ArtifactFormatError, match="no column 'kinds'"):
        collect({"pairs": [{**pairs, "category": "kinds"}], "benign": [benign]})
    with pytest.raises(ConfigError, match="no_safe_prompt 20"):
        collect({"pairs": [{**benign, "all_category": "hate"}], "benign": [benign]})


def test_too_few_benign_prompts_are_said(pairs: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "few.txt"
    path.write_text("a street\na Street\nsafe hate 1\nanother\n")
    with pytest.raises(ConfigError, match="have 2 prompts and 9 are wanted"):
        collect({"pairs": [pairs], "benign": [{"source": "lines", "path": str(path)}]})


def write_full_form(folder: Path, form: str, **columns: str) -> dict[str, Any]:
    """Write files of the published sizes: 15,690 pairs, 535 unsafe prompts in several of them, 8,000 test prompts, 728 leaked."""
    draw = random.Random(0)
    unsafe = [f"unsafe prompt number {n}" for n in range(15690 - 535)]
    unsafe += unsafe[:535]
    rows = []
    for number, prompt in enumerate(unsafe):
        label = SPELLED[number % 7]
        labels = [label, SPELLED[(number + 1) % 7]] if number < 321 else [label]
        for each in labels:
            rows.append([prompt, f"u_idx_{number:07d}_0.jpg", each])
            rows.append([f"safe prompt number {number}", f"s_idx_{number:07d}_0.jpg", each])
    draw.shuffle(rows)
    test = [*(unsafe[1000 + n] for n in range(728)), *(f"test prompt number {n}" for n in range(8000 - 728))]
    captions = folder / "captions.txt"
    captions.write_text("".join(f"a caption, number {n}\n" for n in range(3000)))
    tests = [[prompt, f"{n:07d}_0.jpg", SPELLED[n % 7]] for n, prompt in enumerate(test)]
    return {
        "pairs": [{"source": "coprov2", "path": str(write(folder / "train.csv", "prompt,image,category", rows))}],
        "test": [{"source": form, "path": str(write(folder / "test.csv", "prompt,image,category", tests)), **columns}],
        "benign": [{"source": "lines", "path": str(captions)}],
    }


@pytest.mark.parametrize("columns", [{"form": "coprov2"}, {"form": "csv", "category": "category"}])
def test_the_published_form_is_read_whole(columns: dict[str, str], tmp_path: Path) -> None:
    prompts, cards = collect(write_full_form(tmp_path, **columns))
    splits = Counter(pair.split for pair in prompts.pairs)
    assert splits["train"] + splits["validation"] == 15690
    assert splits["test"] == 8000 - 728
    assert cards["test.csv"].refused == {"in_test_and_pairs": 728}
    assert cards["train.csv"].recurring == 535
    assert cards["train.csv"].merged == 2 * (15690 + 321) - 15690
    assert sum(bool(pair.other_categories) for pair in prompts.pairs) == 321
    share = splits["validation"] / 15690
    assert share == pytest.approx(0.1, abs=0.001)
