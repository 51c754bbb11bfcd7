"""Following release pointers of a real S3 server: what takes over, what is refused, and what goes on meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from cluster.store.signatures import Signer
from safety.families import ModelConfig
from safety.images import decode_image
from safety.lora.weights import LoraWeights
from serve.config import ServeConfig
from serve.endpoint_config import EndpointConfig
from serve.engine import Engine
from serve.errors import ApiError
from serve.loading import load_engine
from serve.release_watcher import ReleaseWatcher
from serve.schema import Job, RenderedImage
from tests.support.release_maker import point, publish, scaled
from tests.support.signing import make_keys

JOB = Job("a house", "aligned", 2, 5, 2, 3.0)


class Served:
    """An engine over a store, its watcher, and the outcomes that the watcher reported."""

    def __init__(self, store: ArtifactStore, model_dir: Path, lora: LoraWeights) -> None:
        self.store, self.model_dir, self.lora = store, model_dir, lora
        point(store, "aligned", self.publish("release-1", lora))
        point(store, "strict", "release-1")
        endpoint = EndpointConfig(models=("strict",), default_steps=2)
        self.config = ServeConfig(serve=endpoint, model=ModelConfig(path=str(model_dir)), store=store.config)
        self.engine: Engine = load_engine(self.config)
        self.reported: list[tuple[str, str]] = []
        self.watcher = self.watch(self.config)

    def watch(self, config: ServeConfig) -> ReleaseWatcher:
        return ReleaseWatcher(config, self.engine, lambda name, outcome: self.reported.append((name, outcome)))

    def publish(self, release: str, weights: LoraWeights, base_sha256: str = "") -> str:
        return publish(self.store, release, weights, self.model_dir, base_sha256)

    def releases(self) -> list[str | None]:
        return [model.release for model in self.engine.models()]

    def draw(self, job: Job = JOB) -> list[Tensor]:
        return drawn(self.engine, job)


def drawn(engine: Engine, job: Job) -> list[Tensor]:
    outcomes = engine.render(engine.admit(job))
    assert all(isinstance(outcome, RenderedImage) and outcome.png for outcome in outcomes)
    return [decode_image(outcome.png) for outcome in outcomes]  # type: ignore[union-attr, arg-type]


@pytest.fixture
def served(store: ArtifactStore, tiny_model_dir: Path, tiny_lora: LoraWeights) -> Served:
    return Served(store, tiny_model_dir, tiny_lora)


def test_several_pointers_are_served_side_by_side(served: Served) -> None:
    assert [(model.id, model.release) for model in served.engine.models()] == [
        ("aligned", "release-1"),
        ("strict", "release-1"),
    ]


def test_a_moved_pointer_brings_its_release_and_leaves_the_others(served: Served) -> None:
    before = served.draw()
    point(served.store, "aligned", served.publish("release-2", scaled(served.lora, 3.0)))
    served.watcher.poll()
    assert served.releases() == ["release-2", "release-1"]
    assert served.reported == [("aligned", "loaded")]
    after = served.draw()
    expected = drawn(load_engine(served.config), JOB)
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))
    assert not torch.equal(before[0], after[0])
    served.watcher.poll()
    assert served.reported == [("aligned", "loaded")], "a pointer that stays is left alone"


def test_a_job_admitted_before_is_drawn_by_the_release_of_then(served: Served) -> None:
    before = served.draw()
    tasks = served.engine.admit(JOB)
    point(served.store, "aligned", served.publish("release-2", scaled(served.lora, 3.0)))
    served.watcher.poll()
    mixed = served.engine.render([*tasks, *served.engine.admit(JOB)])
    images = [decode_image(image.png) for image in mixed if isinstance(image, RenderedImage) and image.png]
    assert [image.release for image in mixed if isinstance(image, RenderedImage)] == ["release-1"] * 2 + [
        "release-2"
    ] * 2
    assert all(torch.equal(a, b) for a, b in zip(images[:2], before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(images[2:], served.draw(), strict=True))


def test_a_release_that_does_not_verify_is_refused_once_and_the_old_one_stays(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    before = served.draw()
    release = served.publish("release-2", scaled(served.lora, 2.0))
    [key] = [key for key in served.store.keys("artifacts/release/release-2") if key.endswith(".safetensors")]
    data = bytearray(served.store.read(key) or b"")
    data[-1] ^= 1
    served.store.write(key, bytes(data))
    point(served.store, "aligned", release)
    served.watcher.poll()
    served.watcher.poll()
    assert served.reported == [("aligned", "refused")]
    assert "release-2" in caplog.text
    assert "SHA-256" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(served.draw(), before, strict=True))
    point(served.store, "aligned", served.publish("release-3", scaled(served.lora, 2.0)))
    served.watcher.poll()
    assert served.releases()[0] == "release-3"


def test_with_trusted_keys_only_a_signed_release_takes_over(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private, public = make_keys(tmp_path)
    endpoint = served.config.serve.model_copy(update={"trusted_keys": (public,), "models": ()})
    watcher = served.watch(served.config.model_copy(update={"serve": endpoint}))
    point(served.store, "aligned", served.publish("release-2", scaled(served.lora, 2.0)))
    watcher.poll()
    watcher.poll()
    assert (served.reported, served.releases()[0]) == ([("aligned", "failed")] * 2, "release-1")
    assert caplog.text.count("no trusted key has signed it") == 1
    manifest = served.store.manifest("release", "release-2")
    assert manifest is not None
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    served.store.sign("release", "release-2", Signer.read(private, "release.signing_key"), files)
    watcher.poll()
    assert served.releases()[0] == "release-2", "its signature came later"


def test_a_release_for_another_base_is_refused(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    point(served.store, "aligned", served.publish("release-2", served.lora, base_sha256="0" * 64))
    served.watcher.poll()
    assert (served.reported, served.releases()[0]) == ([("aligned", "refused")], "release-1")
    assert "is for the base" in caplog.text


def test_a_release_whose_images_are_not_numbers_is_refused(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    point(served.store, "aligned", served.publish("release-2", scaled(served.lora, 1e37)))
    served.watcher.poll()
    assert (served.reported, served.releases()[0]) == ([("aligned", "refused")], "release-1")
    assert "not finite" in caplog.text


def test_a_pointer_to_nothing_leaves_the_old_release(served: Served) -> None:
    point(served.store, "aligned", "release-nowhere")
    served.watcher.poll()
    assert (served.reported, served.releases()[0]) == ([("aligned", "refused")], "release-1")


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_tried_again_and_logged_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    down = StoreConfig(endpoint="http://127.0.0.1:9", patience_s=1.0, connect_timeout_s=0.5)
    watcher = served.watch(served.config.model_copy(update={"store": down}))
    watcher.poll()
    watcher.poll()
    assert served.reported == [("aligned", "failed"), ("strict", "failed")] * 2
    assert len([r for r in caplog.records if "cannot be followed" in r.message]) == 2, "once a model"
    assert len(served.draw()) == 2


def test_an_unknown_model_is_refused_by_name(served: Served) -> None:
    with pytest.raises(ApiError) as caught:
        served.engine.admit(Job("a house", "other", 1, 0, 2, 3.0))
    assert "aligned, strict" in caught.value.failure.message
