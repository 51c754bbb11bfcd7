"""The script for a GPU, on the embedded model and a CPU: every line has figures, and one that fails stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.mark.slow
@pytest.mark.nightly
def test_the_dry_run_gives_figures_of_every_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "gpu.jsonl"
    gpu.main(output, minutes=10, dry=True)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == len(gpu.DRY)
    for line in lines:
        assert "failed" not in line
        assert len(line["lines"]) > 1


def test_without_time_each_says_so(tmp_path: Path) -> None:
    output = tmp_path / "gpu.jsonl"
    gpu.main(output, minutes=0, dry=True)
    assert [json.loads(line)["failed"] for line in output.read_text().splitlines()] == ["no time left"] * len(gpu.DRY)


def test_a_benchmark_that_fails_says_why() -> None:
    found = gpu.measure(("train_step", "--size", "sd99", "--no-memory"), 120)
    assert "sd99" in str(found["failed"])


def test_what_was_printed_before_the_time_was_up_is_kept_and_all_its_processes_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "endless.py").write_text(
        "import json, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(json.dumps({'child': child.pid}), flush=True)\n"
        "child.wait()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu.measure(("endless",), 8)
    assert found["failed"] == "not finished in 8 s"
    # A process that has ended and is not yet waited for has the state Z.
    status = Path(f"/proc/{found['lines'][0]['child']}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize("benchmark", [*gpu.BENCHMARKS, *gpu.DRY])
def test_each_is_a_benchmark_that_there_is(benchmark: tuple[str, ...]) -> None:
    assert (Path(gpu.__file__).parent / f"{benchmark[0]}.py").is_file()
