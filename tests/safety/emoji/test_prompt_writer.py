"""The grammar's promises: splits share nothing, and a pair differs in the concept's phrase alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safety.embedded import EMBEDDED_TAXONOMY
from safety.emoji import WRITER, prompt_writer
from safety.emoji.prompt_writer import GrammarWriter, side
from safety.emoji.scene import is_reserved
from safety.errors import ConfigError
from safety.prompts.rows import BenignPrompt, PromptPair, PromptSet, slug
from safety.prompts.writer import PromptCounts, write_prompts
from safety.taxonomy import BenignConcept, Taxonomy, UnsafeConcept, find_taxonomy, with_article

TAXONOMY = find_taxonomy(EMBEDDED_TAXONOMY)
COUNTS = PromptCounts(
    train=23,
    validation=7,
    test=12,
    heldout=6,
    benign_train=110,
    benign_validation=20,
    benign_test=60,
    benign_text_only=120,
)


@pytest.fixture(scope="module")
def written() -> PromptSet:
    return GrammarWriter().write(TAXONOMY, COUNTS, 0)


def phrases(name: str) -> set[str]:
    """Every noun phrase that may stand for a concept."""
    entry = TAXONOMY.concept(name)
    return {with_article(word, plural=plural) for word in entry.words for plural in (True, False)}


def scene_of(pair: PromptPair, concept: str | None) -> tuple[list[str], str]:
    assert concept is not None
    assert pair.background is not None
    return [concept, *pair.benign_objects], pair.background


def test_counts_are_as_asked(written: PromptSet) -> None:
    for split in ("train", "validation", "test", "heldout"):
        found = Counter(p.category for p in written.in_split(split))
        assert found == dict.fromkeys(TAXONOMY.categories, getattr(COUNTS, split))
    for split in ("train", "validation", "test", "text_only"):
        assert len(written.benign_in(split)) == getattr(COUNTS, f"benign_{split}")


def test_no_prompt_and_no_scene_is_in_two_splits(written: PromptSet) -> None:
    prompts = [text for text, _ in written.prompts()]
    assert len(prompts) == len(set(prompts))
    scenes: dict[str, set[tuple[frozenset[str], str]]] = {}
    for pair in written.pairs:
        side = "test" if pair.split == "heldout" else pair.split
        for concept in (pair.concept, pair.counterpart):
            concepts, background = scene_of(pair, concept)
            scenes.setdefault(side, set()).add((frozenset(concepts), background))
    for row in written.benign:
        assert row.background is not None
        # What is only read may show a training scene again, in other words.
        side = "train" if row.split == "text_only" else row.split
        scenes.setdefault(side, set()).add((frozenset(row.objects), row.background))
    for left, right in itertools.combinations(scenes.values(), 2):
        assert not left & right


def test_test_prompts_are_of_reserved_scenes_and_the_others_are_not(written: PromptSet) -> None:
    for pair in written.pairs:
        for concept in (pair.concept, pair.counterpart):
            assert is_reserved(*scene_of(pair, concept)) == (pair.split in ("test", "heldout"))
    for row in written.benign:
        assert row.background is not None
        assert is_reserved(row.objects, row.background) == (row.split == "test")


def test_heldout_concepts_are_in_the_heldout_split_only(written: PromptSet) -> None:
    heldout = {c.name for c in TAXONOMY.concepts if c.heldout}
    assert heldout
    for pair in written.pairs:
        assert (pair.concept in heldout) == (pair.split == "heldout")
    assert {p.concept for p in written.pairs} == {c.name for c in TAXONOMY.concepts}


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**40))
@pytest.mark.slow
def test_a_pair_differs_in_the_concepts_phrase_alone(seed: int) -> None:
    counts = PromptCounts(train=6, validation=2, test=3, heldout=2, benign_train=5, benign_validation=5, benign_test=5)
    for pair in GrammarWriter().write(TAXONOMY, counts, seed).pairs:
        assert pair.concept is not None
        assert pair.counterpart is not None
        explained = {
            pair.unsafe_prompt.replace(unsafe, safe, 1)
            for unsafe in phrases(pair.concept)
            for safe in phrases(pair.counterpart)
            if unsafe in pair.unsafe_prompt
        }
        assert pair.safe_prompt in explained
        assert TAXONOMY.concept(pair.concept) in TAXONOMY.in_category(pair.category)
        for name in pair.benign_objects:
            assert any(p in pair.unsafe_prompt and p in pair.safe_prompt for p in phrases(name))
        assert f"{pair.background}" in pair.unsafe_prompt


def place(pair: PromptPair) -> str:
    """Where the concept stands in the prompt."""
    if not pair.benign_objects:
        return "alone"
    other = min(pair.unsafe_prompt.find(x) for x in phrases(pair.benign_objects[0]) if x in pair.unsafe_prompt)
    assert pair.concept is not None
    unsafe = min(pair.unsafe_prompt.find(x) for x in phrases(pair.concept) if x in pair.unsafe_prompt)
    return "after" if other < unsafe else "before"


def test_a_concept_stands_after_another_object_in_every_other_training_pair() -> None:
    counts = PromptCounts(train=20 * 5, validation=1, test=1, heldout=1, benign_train=1, benign_validation=1)
    training = GrammarWriter().write(TAXONOMY, counts, 0).in_split("train")
    for name in {pair.concept for pair in training}:
        assert Counter(place(p) for p in training if p.concept == name) == {"alone": 5, "after": 10, "before": 5}


def test_a_concept_stands_in_either_place_in_the_other_splits(written: PromptSet) -> None:
    for split in ("validation", "test", "heldout"):
        places = Counter(place(p) for p in written.in_split(split))
        assert 0.3 <= places["after"] / (places["after"] + places["before"]) <= 0.7


@pytest.mark.slow
def test_prompts_are_a_function_of_the_seed(written: PromptSet) -> None:
    assert GrammarWriter().write(TAXONOMY, COUNTS, 0) == written
    other = GrammarWriter().write(TAXONOMY, COUNTS, 1)
    shared = {t for t, _ in other.prompts()} & {t for t, _ in written.prompts()}
    assert len(shared) < 0.3 * len(written.prompts())


def test_asking_for_more_leaves_earlier_training_rows_as_they_are(written: PromptSet) -> None:
    more = GrammarWriter().write(TAXONOMY, COUNTS.model_copy(update={"train": 40}), 0)
    assert set(written.in_split("train")) <= set(more.in_split("train"))


def small(benign: int) -> Taxonomy:
    return Taxonomy(
        name="small",
        version="1",
        concepts=(UnsafeConcept(name="blade", category="violence", counterpart="thing 0"),),
        benign=tuple(BenignConcept(name=f"thing {i}") for i in range(benign)),
    )


def test_asking_for_too_many_names_the_count() -> None:
    counts = PromptCounts(
        train=5000, validation=1, test=0, heldout=0, benign_train=1, benign_validation=1, benign_test=0
    )
    with pytest.raises(ConfigError, match=r"generate.counts.train: 5000 prompts are requested and 'violence' has \d+"):
        GrammarWriter().write(small(6), counts, 0)


def test_a_category_without_heldout_concepts_is_named() -> None:
    counts = PromptCounts(train=1, validation=1, test=0, heldout=1, benign_train=1, benign_validation=1, benign_test=0)
    with pytest.raises(ConfigError, match=r"generate.counts.heldout: the category 'violence' has no concept"):
        GrammarWriter().write(small(40), counts, 0)


def test_an_unknown_writer_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"use one of: .*grammar"):
        write_prompts("gramar", TAXONOMY, COUNTS, 0)


def test_a_prompt_set_refuses_leaks_and_doubled_ids() -> None:
    pair = PromptPair(
        pair_id="a", category="c", concept=None, split="train", unsafe_prompt="x", safe_prompt="y", writer="w"
    )
    leak = BenignPrompt(prompt_id="b", prompt="y", split="test", writer="w")
    with pytest.raises(ConfigError, match="'y' is in the splits train and test"):
        PromptSet(pairs=(pair,), benign=(leak,)).check()
    with pytest.raises(ConfigError, match="ids taken twice: a"):
        PromptSet(pairs=(pair, pair), benign=()).check()


def test_slugs_are_file_names() -> None:
    assert slug("illegal activity") == "illegal-activity"
    assert slug("Chef's knife ") == "chef-s-knife"


def large_taxonomy(concepts: int) -> Taxonomy:
    return Taxonomy(
        name="large",
        version="1",
        concepts=tuple(
            UnsafeConcept(
                name=f"unsafe {n}", category=f"category {n % 2}", counterpart=f"benign {n}", heldout=n % 5 == 4
            )
            for n in range(concepts)
        ),
        benign=tuple(BenignConcept(name=f"benign {n}") for n in range(concepts)),
    )


def test_the_work_follows_the_number_of_prompts_and_not_that_of_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def counted(concepts: Sequence[str], background: str) -> str:
        looked_up.append(background)
        return side(concepts, background)

    monkeypatch.setattr(prompt_writer, "side", counted)
    work = []
    for concepts in (250, 1000):
        looked_up.clear()
        written = write_prompts(WRITER, large_taxonomy(concepts), COUNTS, 0)
        assert len(written.pairs) == 2 * (23 + 7 + 12 + 6)
        work.append(len(looked_up))
    assert work[1] < 1.5 * work[0]


def test_a_large_taxonomy_s_concept_meets_every_other_one_when_it_needs_to() -> None:
    one = large_taxonomy(200)
    taxonomy = one.model_copy(update={"concepts": one.concepts[:2]})
    counts = COUNTS.model_copy(update={"train": 2000, "heldout": 0, "benign_train": 1, "benign_test": 0})
    pairs = write_prompts(WRITER, taxonomy, counts, 0).in_split("train", "category 0")
    # A few of the 199 others share no background with both in this split.
    assert len({pair.benign_objects for pair in pairs}) > 190
