"""Corrupt objects in the store are found before they are used: the run falls back, rebuilds them, or refuses."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import read_pointer, swap_pointer
from jobs.evaluate.actors import FinishedGroups
from jobs.generate.groups import GroupStore, stored_files
from jobs.run.artifacts import ArtifactRef, StageContext, fetch_artifact, finished
from jobs.run.config import RunConfig
from jobs.run.work_area import Records
from jobs.train.task import checkpointer
from safety.dataset.filter import RejectionReason
from safety.dataset.record import Record
from safety.errors import ArtifactFormatError
from safety.evaluation.records import RecordTable
from safety.experts.checkpoint import Checkpoint
from safety.lora.files import LORA_FILE, load_lora, save_lora
from safety.lora.weights import LoraLayer, LoraWeights
from safety.merge.search import Trial
from safety.prompts.rows import BenignPrompt
from tests.faults import damage
from tests.faults.figures import Figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ARTIFACT = ArtifactRef("expert", "expert-1")
OTHER = ArtifactRef("expert", "expert-2")
DATASET, REPORT = ArtifactRef("dataset", "dataset-1"), ArtifactRef("report", "report-1")
MERGE = ArtifactRef("merge", "merge-1")
POINTERS = {"aligned": ARTIFACT.id, "candidate": OTHER.id}
STEPS = (10, 20)


class World:
    """A store with one of everything that a run keeps, and what a run sees of it."""

    def __init__(self, store: ArtifactStore, folder: Path) -> None:
        run = RunConfig.model_validate({"run": {"name": "faults", "output": str(folder / "out")}})
        self.context = StageContext(run, store, folder / "work", Console(file=io.StringIO()))
        self.store, self.source = store, folder / "source"
        self.groups, self.report = GroupStore(store, DATASET), FinishedGroups(store, REPORT)
        self.records = Records(store, MERGE)
        self.keeper = checkpointer(store, ARTIFACT)
        self.checkpoints = {step: checkpoint(step) for step in STEPS}
        for number, ref in enumerate((ARTIFACT, OTHER)):
            self.put(ref, number)
        for step in STEPS:
            self.keeper.save(self.checkpoints[step])
        self.groups.write_empty({"states": torch.ones(1, 3)})
        for index in range(3):
            row = BenignPrompt(prompt_id=f"b-{index}", prompt=f"a house {index}", split="train", writer="w")
            self.groups.store_group(index, [Record(row=row, seed=index, reason=RejectionReason.BENIGN_FLAGGED)], "m")
            self.report.write(index, RecordTable(records=(), seconds=float(index)))
            self.records.write("trials", {"x": index}, trial(index))
        self.digests = [self.groups.read(index).digest for index in range(3)]
        for name, target in POINTERS.items():
            swap_pointer(store, name, None, target)
        self.whole = {key: damage.read(store, key) for key in store.keys("")}

    def put(self, ref: ArtifactRef, number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        layer = LoraLayer(torch.randn(2, 8, generator=draw), torch.randn(8, 2, generator=draw))
        folder = self.source / ref.id
        save_lora(LoraWeights({"mid.to_q": layer}), folder, metadata={"number": number})
        (folder / "metrics.jsonl").write_text(f'{{"step": {number}}}\n')
        self.store.put(ref.kind, ref.id, folder, config={"rank": number, "rate": 1e-05}, seed=number)

    def restore(self) -> None:
        """Bring everything back to where it was."""
        for key in self.store.keys(""):
            if key not in self.whole:
                self.store.delete(key)
        for key, data in self.whole.items():
            if self.store.read(key) != data:
                self.store.write(key, data)


def checkpoint(step: int) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    adapter = {name: torch.randn(3, 2, generator=draw) for name in ("a.down", "a.up")}
    moments = {f"exp_avg/{name}": torch.randn(3, 2, generator=draw) for name in adapter}
    return Checkpoint(step, adapter, moments, [{"step": float(i), "loss": 1.0 / (i + 3)} for i in range(step)])


def trial(number: int) -> Trial:
    return Trial(
        parameters={"x": number},
        score=0.5 + number,
        harm=0.25,
        drift=0.125,
        harm_by_category={"hate": 0.25},
        seconds=1.0,
        finished=2.0 + number,
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (one.step, one.history) == (other.step, other.history) and all(
        torch.equal(one[part][name], other[part][name]) for part in (1, 2) for name in other[part]
    )


def artifacts_are_right(world: World) -> bool:
    """Say whether both artifacts verify, and refuse nothing on the way to the user."""
    for ref in (ARTIFACT, OTHER):
        try:
            world.store.verify(*ref)
        except CorruptArtifact:
            with pytest.raises(CorruptArtifact, match=f"{ref.kind}/{ref.id}.*Fix: "):
                fetch_artifact(world.store, world.context.work / "fresh" / str(random.random()), ref)
            assert not finished(world.context, ref), "a file that did not verify where it was used is read again"
            world.put(ref, (ARTIFACT, OTHER).index(ref))
            assert finished(world.context, ref), "it is rebuilt"
            assert {world.store.read(key) for key in world.store.keys(f"artifacts/expert/{ref.id}/files/")} == {
                data for key, data in world.whole.items() if key.startswith(f"artifacts/expert/{ref.id}/files/")
            }
            return False
    return True


def checkpoints_are_right(world: World) -> bool:
    """Say whether the newest checkpoint is found; whatever is found in its place is whole."""
    found = world.keeper.latest()
    assert found is None or same(found, world.checkpoints[found.step])
    if found is not None and found.step == STEPS[0]:
        return False
    whole = [world.keeper.at(step) is not None for step in STEPS]
    assert found is not None or not any(whole)
    return all(whole)


def groups_are_right(world: World) -> bool:
    """Say whether every finished group of rows is found; those that are are what was written."""
    found = world.groups.verified()
    assert all(world.groups.read(index).digest == world.digests[index] for index in found)
    return sorted(found) == [0, 1, 2]


def group_files_are_right(world: World) -> bool:
    """Say whether the files of every finished group are found; what has their sizes alone is refused where it is used."""
    found = world.groups.finished()
    try:
        for name, entry in stored_files(found).items():
            world.store.read_stored(*DATASET, name, entry)
    except CorruptArtifact:
        return False
    return sorted(found) == [0, 1, 2]


def report_is_right(world: World) -> bool:
    """Say whether every finished group of images is found."""
    found = dict(world.report.all())
    assert all(table.seconds == number for number, table in found.items())
    return sorted(found) == [0, 1, 2]


def search_is_right(world: World) -> bool:
    """Say whether every finished trial is found."""
    found = [world.records.read("trials", {"x": number}, Trial) for number in range(3)]
    assert all(record is None or record == trial(number) for number, record in enumerate(found))
    assert world.records.all("trials", Trial) == sorted(
        filter(None, found), key=world.records.all("trials", Trial).index
    )
    return None not in found


def pointers_are_right(world: World) -> bool:
    """Say whether both pointers name what they should; any other name they give is of nothing that is there."""
    right = True
    for name, expected in POINTERS.items():
        try:
            target = read_pointer(world.store, name)
        except CorruptArtifact:
            right = False
            continue
        if target != expected:
            right = False
            if target is not None:
                with pytest.raises(CorruptArtifact, match="not published"):
                    world.store.verify("expert", target)
    return right


AREAS: Mapping[str, tuple[str, Callable[[World], bool]]] = {
    "artifacts": ("artifacts/expert/", artifacts_are_right),
    "files of groups": ("artifacts/dataset/", group_files_are_right),
    "checkpoints": ("work/expert/", checkpoints_are_right),
    "groups of rows": ("work/dataset/", groups_are_right),
    "groups of images": ("work/report/", report_is_right),
    "trials": ("work/merge/", search_is_right),
    "pointers": ("pointers/", pointers_are_right),
}


@pytest.fixture
def world(store: ArtifactStore, tmp_path: Path) -> World:
    return World(store, tmp_path)


@pytest.mark.parametrize("area", AREAS)
def test_what_is_whole_is_taken(world: World, area: str) -> None:
    assert AREAS[area][1](world)


def test_every_random_corruption_is_found_before_use(
    world: World, times: Callable[[int, int], int], figures: Figures
) -> None:
    count, draw = times(200, 40), random.Random(1)
    kinds: Counter[str] = Counter()
    for number in range(count):
        # Artifacts and checkpoints are half of it: they are what a run hands on.
        area = draw.choice([*AREAS, "artifacts", "checkpoints"])
        prefix, is_right = AREAS[area]
        kind = damage.KINDS[number % len(damage.KINDS)]
        # A pointer's token only names its writer, so a turned bit in it changes nothing.
        if area == "pointers" and kind is damage.flip:
            area, (prefix, is_right) = "artifacts", AREAS["artifacts"]
        done = kind(world.store, world.store.keys(prefix), draw)
        assert not is_right(world), done
        world.restore()
        assert is_right(world), f"after {done} was undone"
        kinds[f"{kind.__name__} in {area}"] += 1
    figures.note(
        "random corruptions of artifacts, checkpoints, finished rows and pointers",
        f"{count} of {count} found before use, and rebuilt, skipped or refused",
        count=count,
        **dict(sorted(kinds.items())),
    )


def test_no_damage_of_an_adapter_s_file_ends_in_a_crash(world: World, times: Callable[[int, int], int]) -> None:
    """Without its manifest: values may change unseen, and any other damage is reported as the file's fault."""
    path, draw = world.source / ARTIFACT.id / LORA_FILE, random.Random(2)
    whole = path.read_bytes()
    assert load_lora(path)
    refused = 0
    for _ in range(times(2000, 300)):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data if draw.random() < 0.8 else data[: draw.randrange(len(data))])
        try:
            load_lora(path)
        except ArtifactFormatError:
            refused += 1
    assert refused > 50
