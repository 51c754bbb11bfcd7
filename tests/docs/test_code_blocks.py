"""Code in documents and cards: Python runs as written, and each command, option, path and link shown exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from markdown import DOCUMENTS, INLINE, LINK, ROOT, Block, all_blocks, blocks, commands, without_blocks
from safetensors.torch import save_file
from typer.testing import CliRunner

from jobs.export.card import fused_card
from jobs.release.card import Usage
from jobs.release.card import write_card as release_card
from safety.experts.card import write_card as expert_card
from safety.experts.config import ExpertConfig
from safety.experts.training import TrainingResult
from safety.exports.fused_folder import write_fused_folder
from safety.families import ModelConfig, load_model
from safety.families.family import configured_family, families, family_name, model_folder
from safety.families.model_index import absent_parts
from safety.lora.files import LORA_FILE, load_lora, save_lora
from safety.release import RELEASE_FILE, BaseModelIdentity, ReleaseInfo, file_hash, model_hash, read_release
from tests.support.pico_models import PICO_MODELS
from tests.support.small_sets import random_lora
from tests.support.small_world import TAXONOMY

ELSEWHERE = {
    "CONTRIBUTING.md": "the examples are files of their own: tests/docs/test_examples.py runs them",
}
OUTSIDE = {
    **dict.fromkeys(("kind", "helm", "kubectl", "docker"), "needs a cluster or a container engine"),
    **dict.fromkeys(("curl", "pip", "python3"), "needs the network or a running endpoint"),
    "openssl": "tests/support/signing.py runs its lines",
    **dict.fromkeys(("ray", "serve", "tensorboard", ".venv/bin/pre-commit"), "a tool of another project"),
}
"""Commands whose options are not ours to check; the files they name are."""
FOLDERS = ("safety/", "cluster/", "serve/", "jobs/", "tests/", "docs/", "k8s/", "benchmarks/", ".github/")
PLACEHOLDER = re.compile(r"[A-Z]{2,}")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
BLOCKS = all_blocks()
SHELL = [block for block in BLOCKS if block.language in ("sh", "bash")]
PYTHON = [block for block in BLOCKS if block.language == "python" and block.document not in ELSEWHERE]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout after ``make demo``, with a random adapter as the release."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("safety", "docs", "jobs"):
        (folder / name).symlink_to(ROOT / name)
    release = folder / "out/demo/release"
    weights = random_lora(load_model(ModelConfig()), 0, size=0.02)
    path = save_lora(weights, release, metadata={})
    info = ReleaseInfo(
        name="demo",
        base=BaseModelIdentity(id="emoji", family="stable-diffusion", sha256=model_hash(model_folder(ModelConfig()))),
        adapter_sha256=file_hash(path),
        judge=None,
        provenance={},
    )
    (release / "README.md").write_text(release_card(info, "Apache-2.0", {}, None, None), encoding="utf-8")
    (release / RELEASE_FILE).write_text(info.model_dump_json(), encoding="utf-8")
    return folder


def run_block(text: str, **names: Any) -> dict[str, Any]:
    """Run a block as a program of its own, with ``names`` already there, and return what it defines."""
    space: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(text, "block", "exec"), space)
    return space


@pytest.mark.parametrize("block", PYTHON, ids=[f"{block.document}-{n}" for n, block in enumerate(PYTHON)])
def test_a_python_block_runs_as_written(block: Block, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    run_block(block.text)


def test_readmes_lines_load_model_and_release_in_stock_diffusers(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are the document's own; that the images show both models is checked here."""
    monkeypatch.chdir(checkout)
    (block,) = (block for block in PYTHON if block.document == "README.md")
    pipe = run_block(block.text)["pipe"]
    assert_draws_both_models(pipe)


def test_the_release_cards_lines_run(checkout: Path) -> None:
    card = (checkout / "out/demo/release/README.md").read_text(encoding="utf-8")
    base, release = checkout / "safety/emoji/zoo", checkout / "out/demo/release"
    assert_draws_both_models(run_card(card, PATH_OF_THE_BASE_MODEL=str(base), PATH_OF_THIS_FOLDER=str(release)))


@pytest.mark.parametrize("name", PICO_MODELS)
def test_a_release_cards_lines_run_for_every_family(
    name: str, pico_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    config = ModelConfig(path=str(pico_model_dir(name)))
    component = families[family_name(config)].component
    path = save_lora(random_lora(load_model(config), 0), tmp_path, metadata={}, component=component)
    base = BaseModelIdentity(id="pico", family=name, sha256="0" * 64)
    info = ReleaseInfo(name="pico", base=base, adapter_sha256=file_hash(path), judge=None, provenance={})
    pipeline, absent = configured_family(config).pipeline_class, absent_parts(Path(config.path))
    card = release_card(info, "mit", {}, None, None, Usage(pipeline=pipeline, load=dict.fromkeys(absent)))
    kind = type(PICO_MODELS[name].stock(Path(config.path)))
    used = run_card(card, PATH_OF_THE_BASE_MODEL=config.path, PATH_OF_THIS_FOLDER=str(tmp_path))
    assert type(used) is kind
    assert used.get_active_adapters()
    rounding = write_fused_folder(Path(config.path), load_lora(tmp_path), tmp_path / "fused")
    fused = fused_card(info, pipeline, "mit", rounding, absent=absent)
    assert type(run_card(fused, PATH_OF_THIS_FOLDER=str(tmp_path / "fused"))) is kind


def run_card(card: str, **places: str) -> Any:
    """Run a card's lines with places filled in, and return the pipeline that they open."""
    (block,) = (block for block in blocks(card, "card") if block.language == "python")
    text = block.text
    for word, place in places.items():
        text = text.replace(word, place)
    return run_block(text)["pipeline"]


def test_an_expert_cards_lines_run(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    result = TrainingResult([{"step": 0.0, "loss": 1.0}], [], 0)
    path = expert_card(tmp_path, "violence", ExpertConfig(benign_rows=8), result, {})
    (tmp_path / LORA_FILE).symlink_to(checkout / "out/demo/release" / LORA_FILE)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in blocks(path.read_text(encoding="utf-8"), "card"):
        if block.language == "python":
            pipe = StableDiffusionPipeline.from_pretrained(checkout / "safety/emoji/zoo", safety_checker=None)
            run_block(block.text, pipe=pipe)
            ran += 1
            assert pipe.get_active_adapters()
    assert ran == 1


def test_a_fused_models_cards_lines_run(checkout: Path, tmp_path: Path) -> None:
    weights = load_lora(checkout / "out/demo/release")
    rounding = write_fused_folder(model_folder(ModelConfig()), weights, tmp_path)
    info = read_release(checkout / "out/demo/release")
    card = fused_card(info, "StableDiffusionPipeline", "Apache-2.0", rounding)
    pipe = run_card(card, PATH_OF_THIS_FOLDER=str(tmp_path))
    assert pipe.unet.dtype == pipe.text_encoder.dtype
    assert not pipe.get_active_adapters()


def test_no_other_card_holds_python() -> None:
    """A card with new lines needs a test here."""
    sources = [path for folder in ("safety", "jobs", "serve", "cluster") for path in (ROOT / folder).rglob("*.*")]
    texts = {path: path.read_text(encoding="utf-8") for path in sources if path.suffix in (".py", ".j2", ".md")}
    held = {path.relative_to(ROOT).as_posix() for path, text in texts.items() if "```python" in text}
    assert held == {"safety/experts/card.py", "jobs/release/card.py", "jobs/export/card.py"}


def assert_draws_both_models(pipe: Any) -> None:
    """Assert that a stock pipeline draws an image with and one without its adapter, and that they differ."""
    import torch

    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        noise = torch.Generator().manual_seed(1)
        image = pipe("a kitchen knife on a blue background", num_inference_steps=2, generator=noise).images[0]
        return np.asarray(image, dtype=int)

    aligned = draw()
    pipe.disable_lora()
    base = draw()
    assert aligned.shape == base.shape == (64, 64, 3)
    assert aligned.std() > 1
    assert np.abs(aligned - base).max() > 0


@pytest.mark.parametrize("block", SHELL, ids=[f"{block.document}-{n}" for n, block in enumerate(SHELL)])
def test_a_shell_blocks_commands_exist(block: Block) -> None:
    assert commands(block)
    for line in commands(block):
        check_command(line)


def test_inline_code_exists() -> None:
    """Commands and paths between backticks, in every document."""
    lost = []
    for path in DOCUMENTS:
        if path.name == "CHANGELOG.md":
            continue  # it names what is no more
        for code in INLINE.findall(without_blocks(path.read_text(encoding="utf-8"))):
            try:
                if re.match(r"(make|python|pytest) ", code):
                    check_command(code)
                elif code.startswith(FOLDERS) and " " not in code:
                    check_path(code)
            except AssertionError as error:
                lost.append(f"{path.relative_to(ROOT)}: {code}: {error}")
    assert not lost, "\n".join(lost)


def test_links_lead_somewhere() -> None:
    lost = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in DOCUMENTS
        for link in LINK.findall(path.read_text(encoding="utf-8"))
        if "://" not in link and not (path.parent / link).exists()
    ]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("language", ["yaml", "json"])
def test_data_blocks_can_be_read(language: str) -> None:
    for block in BLOCKS:
        if block.language == language:
            yaml.safe_load(block.text)  # JSON is YAML


def test_make_help_lists_the_commands() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    for target in ("demo", "serve", "test", "test-fast", "lint", "format", "coverage", "docs", "faults", "preflight"):
        assert re.search(rf"^make {target} ", shown, re.MULTILINE), target


def test_the_commands_for_keys_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/endpoint.md's lines, one after another, as they stand."""
    from serve.keys import app

    monkeypatch.chdir(tmp_path)
    lines = [line for block in SHELL for line in commands(block) if line.startswith("python -m serve.keys")]
    assert {line.split()[3] for line in lines} == {"new", "revoke"}
    for line in lines:
        assert CliRunner().invoke(app, shlex.split(line)[3:]).exit_code == 0, line
    assert (tmp_path / "keys.yaml").is_file()


def test_the_commands_of_exports_run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/exports.md's lines, one after another, as they stand."""
    from jobs.command.app import app

    monkeypatch.chdir(checkout)
    lines = [line for block in SHELL for line in commands(block) if line.startswith("safetydpo export")]
    assert len(lines) == 3
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, done.output


OWN_WORLD = """
from tests.support.pixel_judge import load_pixel_judge as load_judge
from tests.support.small_world import SmallWriter as Prompts
"""


def write_own_data(folder: Path) -> None:
    """Write the pairs, captions and judge that the README's YAML names."""
    from tests.support.tiny_clip import write_clip

    (folder / "data").mkdir()
    pairs = [f"a {c.name} {n},a house {c.name} {n},{c.category}\n" for c in TAXONOMY.concepts for n in range(40)]
    (folder / "data" / "pairs.csv").write_text("unsafe,safe,category\n" + "".join(pairs), encoding="utf-8")
    captions = "".join(f"a quiet street, number {n}\n" for n in range(1300))
    (folder / "data" / "captions.txt").write_text(captions, encoding="utf-8")
    write_clip(folder / "openai" / "clip-vit-large-patch14")
    save_file({"prompts": torch.eye(2, 12)}, folder / "models" / "q16.safetensors")


@pytest.mark.parametrize(
    ("document", "base", "judged"),
    [
        ("README.md", "models/my-stable-diffusion", "q16"),
        ("docs/presets.md", "someone/my-stable-diffusion", "pixel-sum"),
    ],
)
def test_the_dozen_lines_of_ones_own_model_pass_all_that_a_run_checks_first(
    document: str, base: str, judged: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document's YAML as it stands, with a small model, prompts, world and judge where it says that they lie."""
    from jobs.run.config import load_run
    from jobs.run.needs import FEW, STAGES, name_problems, prompt_problems
    from safety.judges.judge import load_judge

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-stable-diffusion").symlink_to(tiny_model_dir)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "taxonomy.yaml").write_text(yaml.safe_dump(TAXONOMY.model_dump(mode="json")), encoding="utf-8")
    (tmp_path / "my_world.py").write_text(OWN_WORLD, encoding="utf-8")
    write_own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (block,) = (block for block in BLOCKS if block.document == document and block.language == "yaml")
    assert len(block.text.splitlines()) <= 12
    (tmp_path / "run.yaml").write_text(block.text, encoding="utf-8")
    run = load_run(tmp_path / "run.yaml")
    taxonomy = run.load_taxonomy()
    assert name_problems(run, taxonomy, STAGES) == []
    assert prompt_problems(run, taxonomy, STAGES, FEW) == []
    for judge in (run.generate.judge, run.merge.judge, run.evaluate.judge):
        assert load_judge(judge, taxonomy).name == judged
    assert run.base_name == base
    assert (run.generate.render.height, run.model.device, run.train.gpus_per_worker) == (512, "cuda", 1.0)


def check_command(line: str) -> None:
    """Raise AssertionError for a command, option or file that does not exist."""
    words = shlex.split(re.sub(r"^\w+=\$\((.*)\)$", r"\1", line))
    while words and re.match(r"^\w+=", words[0]):
        words.pop(0)
    if not words:
        return
    if words[0] == "ray" and "--" in words:
        check_command(shlex.join(words[words.index("--") + 1 :]))
    program, rest = words[0], words[1:]
    if program == "make":
        assert rest[0] in TARGETS, f"no target {rest[0]}"
    elif program == "python" and rest[0] == "-m":
        check_module(rest[1], rest[2:])
    elif program == "safetydpo":
        check_module("jobs.command", rest)
    elif program in ("python", "pytest", ".venv/bin/pytest", "export"):
        pass
    else:
        assert program in OUTSIDE, f"{program} is not known: say in OUTSIDE why it is not run"
    for word in rest:
        if word.startswith(FOLDERS):
            check_path(word)


def check_module(name: str, words: list[str]) -> None:
    if PLACEHOLDER.search(name):
        return
    assert importlib.util.find_spec(name), f"no module {name}"
    if not name.startswith(("jobs", "serve")):
        return
    known = options(name, words[0] if words and not words[0].startswith("-") else "")
    for word in words:
        assert not word.startswith("--") or word in known, f"{name} has no option {word}"


@cache
def options(name: str, subcommand: str) -> set[str]:
    """Return the options of ``python -m name [subcommand]``."""
    package = bool(getattr(importlib.util.find_spec(name), "submodule_search_locations", None))
    module = importlib.import_module(f"{name}.__main__" if package else name)
    if not hasattr(module, "app"):
        single = typer.Typer()
        single.command()(module.main)
    command: Any = typer.main.get_command(getattr(module, "app", None) or single)
    if subcommand:
        assert subcommand in command.commands, f"{name} has no command {subcommand}"
        command = command.commands[subcommand]
    return {option for parameter in command.params for option in parameter.opts}


def check_path(word: str) -> None:
    """Raise AssertionError unless a path, or a pattern that matches some, is in the checkout."""
    path = word.partition("::")[0].rstrip(".,")
    assert PLACEHOLDER.search(path) or any(ROOT.glob(path.rstrip("/"))), f"no {path}"


def test_every_python_block_parses() -> None:
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text)
