"""The taxonomy's consistency rules, and what the embedded one promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from jobs.run.config import RESERVED, RunConfig
from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.taxonomy import Taxonomy, find_taxonomy
from tests.support.names import DRAWABLE

BENIGN = {"name": "spoon"}
UNSAFE = {"name": "kitchen knife", "category": "violence", "counterpart": "spoon"}


def make(**changes: object) -> Taxonomy:
    return Taxonomy.model_validate({"name": "t", "version": "1", "concepts": [UNSAFE], "benign": [BENIGN], **changes})


def test_the_embedded_taxonomy_is_as_large_as_the_world_asks() -> None:
    taxonomy = find_taxonomy(EMBEDDED_TAXONOMY)
    assert len(taxonomy.categories) == 7
    for category in taxonomy.categories:
        assert len(taxonomy.in_category(category)) >= 6
        assert len(taxonomy.in_category(category, heldout=True)) >= 1
    assert len(taxonomy.concepts) > 42
    assert len(taxonomy.benign) >= 100


def test_every_word_of_the_embedded_taxonomy_names_one_concept() -> None:
    taxonomy = find_taxonomy(EMBEDDED_TAXONOMY)
    words = [word for c in (*taxonomy.concepts, *taxonomy.benign) for word in c.words]
    assert len(words) == len(set(words))


def test_names_list_unsafe_concepts_first() -> None:
    assert make().names == ("kitchen knife", "spoon")


def test_a_lost_counterpart_is_named() -> None:
    with pytest.raises(ValidationError, match="kitchen knife -> ladle"):
        make(concepts=[{**UNSAFE, "counterpart": "ladle"}])


def test_a_concept_named_twice_is_named() -> None:
    with pytest.raises(ValidationError, match="named twice: spoon"):
        make(benign=[BENIGN, BENIGN])


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="catgory"):
        make(concepts=[{**UNSAFE, "catgory": "violence"}])


def test_an_unknown_concept_is_named() -> None:
    with pytest.raises(KeyError, match="no concept 'fork'"):
        make().concept("fork")


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "taxonomy.yaml"
    document = {"name": "t", "version": "1", "concepts": [UNSAFE], "benign": [BENIGN], **changes}
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "field", "message", "fix"),
    [
        ({"version": 1}, "taxonomy.version", "1 is a number and must be text", 'put it in quotes: version: "1"'),
        ({"version": 1.5}, "taxonomy.version", "must be text", 'version: "1.5"'),
        ({"version": None}, "taxonomy.version", "valid string", "correct version"),
        ({"name": ["t"]}, "taxonomy.name", "valid string", "correct name"),
        ({"concepts": "knife"}, "taxonomy.concepts", "must be a list", "correct concepts"),
        ({"concepts": None}, "taxonomy.concepts", "must be a list", "correct concepts"),
        ({"concepts": []}, "taxonomy", "no concept", "correct the file"),
        ({"concepts": ["knife"]}, "taxonomy.concepts.0", "mapping of keys", "correct concepts.0"),
        ({"concepts": [{**UNSAFE, "category": 7}]}, "taxonomy.concepts.0.category", "must be text", 'category: "7"'),
        ({"concepts": [{**UNSAFE, "heldout": "maybe"}]}, "taxonomy.concepts.0.heldout", "boolean", "correct"),
        ({"concepts": [{**UNSAFE, "synonyms": "blade"}]}, "taxonomy.concepts.0.synonyms", "must be a list", "correct"),
        ({"concepts": [{**UNSAFE, "synonyms": [3]}]}, "taxonomy.concepts.0.synonyms.0", "text", 'in quotes: "3"'),
        ({"concepts": [{**UNSAFE, "emoji": "🔪"}]}, "taxonomy.concepts.0.emoji", "unknown key", "is called symbol now"),
        ({"benign": [{**BENIGN, "emoji": "🥄"}]}, "taxonomy.benign.0.emoji", "unknown key", "is called symbol now"),
        ({"benign": {"name": "spoon"}}, "taxonomy.benign", "must be a list", "correct benign"),
        ({"kind": 1}, "taxonomy.kind", "unknown key", "remove kind"),
        ({"concepts": [{**UNSAFE, "counterpart": "ladle"}]}, "taxonomy", "kitchen knife -> ladle", "correct"),
    ],
)
def test_an_ordinary_mistake_is_named_with_its_fix(
    tmp_path: Path, changes: dict[str, Any], field: str, message: str, fix: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as refused:
        find_taxonomy(str(path))
    assert refused.value.field == field
    assert fix in refused.value.fix
    assert str(path) in refused.value.message


def test_many_mistakes_are_not_all_told(tmp_path: Path) -> None:
    path = write(tmp_path, benign=[BENIGN, *({"name": number} for number in range(100))])
    with pytest.raises(ConfigError, match="and 95 more") as refused:
        find_taxonomy(str(path))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "at least 1 character"),
        ("x" * 121, "at most 120 characters"),
        ("暴" * 120, "longer than 200 bytes"),
        ("a/b", "slash"),
        ("../up", "slash"),
        ("a\\b", "slash"),
        (" a", "space"),
        ("a  b", "space"),
        (".", "letter or digit"),
        ("..", "letter or digit"),
        ("_hidden", "letter or digit"),
        ("-", "letter or digit"),
        ("🔪", "letter or digit"),
        ("a\nb", r"U\+000A"),
        ("a\tb", r"U\+0009"),
        ("a\x07", r"U\+0007"),
        ("a\x00b", r"U\+0000"),
        ("a\u202eb", r"U\+202E"),
        ("a\u2028b", r"U\+2028"),
        ("a\ufeff", r"U\+FEFF"),
    ],
)
@pytest.mark.parametrize("part", ["name", "category", "concept", "benign", "synonym"])
def test_a_name_that_cannot_be_a_file_or_a_line_is_refused(tmp_path: Path, name: str, message: str, part: str) -> None:
    changes: dict[str, Any] = {
        "name": {"name": name},
        "category": {"concepts": [{**UNSAFE, "category": name}]},
        "concept": {"concepts": [{**UNSAFE, "name": name}]},
        "benign": {"benign": [BENIGN, {"name": name}]},
        "synonym": {"benign": [{**BENIGN, "synonyms": [name]}]},
    }[part]
    with pytest.raises(ConfigError, match=message) as refused:
        find_taxonomy(str(write(tmp_path, **changes)))
    assert refused.value.field.startswith("taxonomy.")


@pytest.mark.parametrize("name", DRAWABLE)
def test_other_names_pass(name: str) -> None:
    assert make(concepts=[{**UNSAFE, "category": name}]).categories == (name,)


@pytest.mark.parametrize(("one", "other"), [("hate", "Hate"), ("self-harm", "self harm"), ("café", "cafe\u0301")])
def test_names_that_differ_in_case_or_punctuation_alone_are_refused(one: str, other: str) -> None:
    concepts = [{**UNSAFE, "category": one}, {**UNSAFE, "name": "axe", "category": other}]
    with pytest.raises(ValidationError, match="case or punctuation alone"):
        make(concepts=concepts)
    with pytest.raises(ValidationError, match="named twice"):
        make(benign=[BENIGN, {"name": one}, {"name": other}])


@pytest.mark.parametrize(
    "name",
    [*RESERVED, "Overall", "Benign!", "all single", "co-merge", "co-merge-default", "average", "task-arithmetic"],
)
def test_a_category_is_not_called_as_another_model_of_the_run(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, concepts=[{**UNSAFE, "category": name}])
    run = RunConfig.model_validate({"run": {"name": "x", "output": "out"}, "taxonomy": str(path)})
    with pytest.raises(ConfigError, match="as are results of every run") as refused:
        run.load_taxonomy()
    assert "give it another name" in refused.value.fix
