"""The endpoint's part of a run's config, its page, and the application's builder."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import ValidationError

from safety.errors import ConfigError
from serve.app import build
from serve.config import load_config
from serve.endpoint_config import EndpointConfig
from serve.page import PAGE_HEADERS, render_page


def test_the_endpoint_reads_its_part_of_a_run_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {name: x}\ntrain: {nonsense: 1}\nserve: {port: 8123}\nmodel: {path: /models/x}\n")
    config = load_config(path)
    assert (config.serve.port, config.model.path, config.serve.pointer) == (8123, "/models/x", "aligned")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("serve: {prot: 1}", r"serve\.prot"),
        ("serve: {port: 99999}", r"serve\.port"),
        ("serve: {default_steps: 60}", "default_steps is 60, over max_steps 50"),
        ("serve: {models: [aligned]}", "twice"),
        ("serve: {models: [base]}", "base model's name"),
        ("serve: {pointer: base}", "base model's name"),
        ("serve: {host: 0.0.0.0}", "no key is asked for"),
        ("serve: {host: images.example}", "no key is asked for"),
        ("serve: {autoscaling: {min: 3, max: 2}}", "min 3 is over max 2"),
        ("serve: {judge: {action: delete}}", r"serve\.judge\.action"),
        ("serve: [", "not YAML"),
        ("- 1", "no mapping"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_config(path)


def test_replicas_get_absolute_paths_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = build({"serve": {"keys": "keys.json", "trusted_keys": ["key.pub.pem"]}})
    gateway = app._bound_deployment
    [renderer, settings] = gateway.init_args
    document, _ = renderer._bound_deployment.init_args
    for found in (settings, document["serve"]):
        assert found["keys"] == str(tmp_path / "keys.json")
        assert found["trusted_keys"] == [str(tmp_path / "key.pub.pem")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        load_config(tmp_path / "absent.yaml")


def test_sides_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_side 64 is over max_side 32"):
        EndpointConfig(min_side=64, max_side=32)


def test_the_builder_takes_a_document_or_the_path_of_a_run(tmp_path: Path) -> None:
    from ray.serve import Application

    path = tmp_path / "run.yaml"
    path.write_text("serve: {port: 8123}\n")
    assert isinstance(build({"serve": {"port": 8123}}), Application)
    assert isinstance(build({"config": str(path)}), Application)
    with pytest.raises(ConfigError, match=r"serve\.prot"):
        build({"serve": {"prot": 1}})


def test_the_gateways_process_does_without_torch() -> None:
    check = (
        "import sys, serve.app; print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


class Links(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escapes_its_settings() -> None:
    config = EndpointConfig(serve_base=True, page_base=True, examples=('<script>alert(1)</script> & "quotes"',))
    html = render_page(config)
    page = Links()
    page.feed(html)
    assert page.loads == ["data:,"]
    assert page.tags.count("script") == 1
    assert "<script>alert(1)</script>" in page.text
    assert not re.search(r"https?://", html)
    assert "unsafe-inline" not in PAGE_HEADERS["Content-Security-Policy"]


def test_the_page_shows_the_base_model_only_where_a_setting_of_its_own_says_so() -> None:
    assert 'data-model="base"' in render_page(EndpointConfig(serve_base=True, page_base=True))
    for config in (EndpointConfig(), EndpointConfig(serve_base=True)):
        html = render_page(config)
        assert re.findall(r'data-model="(\w+)"', html) == ["aligned"]
        assert not re.search("not aligned|base model|Before and after|side by side", html)
    with pytest.raises(ValidationError, match="page_base shows a model that is not offered"):
        EndpointConfig(page_base=True)


def test_only_the_demos_show_the_base_model() -> None:
    shown = {path.name for path in Path("jobs/configs").glob("*.yaml") if load_config(path).serve.page_base}
    assert shown == {"emoji.yaml", "emoji-report.yaml"}


def test_every_input_of_the_page_has_a_label() -> None:
    html = render_page(EndpointConfig(serve_base=True, page_base=True))
    inputs = set(re.findall(r'<(?:input|textarea) id="(\w+)"', html))
    assert inputs == set(re.findall(r'<label for="(\w+)"', html))
    assert {"prompt", "seed"} <= inputs


def test_an_open_address_takes_a_key_file_or_an_explicit_word() -> None:
    assert EndpointConfig(host="0.0.0.0", keys=Path("keys.yaml")).keys == Path("keys.yaml")
    assert EndpointConfig(host="0.0.0.0", allow_open=True).host == "0.0.0.0"
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert EndpointConfig(host=host).host == host


def test_names_are_those_of_the_pointers_and_of_the_base_model() -> None:
    assert EndpointConfig(models=("strict",), serve_base=True).names == ("aligned", "strict", "base")
    assert EndpointConfig().names == ("aligned",)


def test_the_page_asks_for_a_key_only_where_one_is_needed() -> None:
    assert 'id="key"' not in render_page(EndpointConfig())
    with_key = render_page(EndpointConfig(keys=Path("/secret/keys.yaml")))
    assert '<label for="key">' in with_key
    assert 'type="password"' in with_key
    assert "/secret" not in with_key


def test_the_page_has_an_image_for_every_model() -> None:
    html = render_page(EndpointConfig(models=("strict", "mild"), serve_base=True, page_base=True))
    assert re.findall(r'data-model="(\w+)"', html) == ["base", "aligned", "strict", "mild"]


def options(application: object) -> dict[str, dict[str, object]]:
    """Return the options of a built application's deployments, as ``serve build`` writes them."""
    from ray.serve._private.build_app import build_app
    from ray.serve.deployment import deployment_to_schema

    built = build_app(application, name="images")
    return {d.name: deployment_to_schema(d).model_dump(exclude_unset=True) for d in built.deployments}


def test_replicas_are_a_fixed_number_or_scale_with_the_requests() -> None:
    fixed = options(build({"serve": {"replicas": 3}}))["renderer"]
    assert fixed["num_replicas"] == 3
    scaling = options(build({"serve": {"autoscaling": {"min": 2, "max": 5, "target_ongoing": 6}}}))["renderer"]
    found = scaling["autoscaling_config"]
    assert isinstance(found, dict)
    assert (found["min_replicas"], found["max_replicas"], found["target_ongoing_requests"]) == (2, 5, 6)
    assert "num_replicas" not in scaling or scaling["num_replicas"] in (None, "auto")


def test_replicas_answer_what_they_took_in_before_they_go() -> None:
    found = options(build({"serve": {"request_timeout_s": 70, "health_timeout_s": 20}}))
    assert found["renderer"]["graceful_shutdown_timeout_s"] == 70
    assert float(str(found["gateway"]["graceful_shutdown_timeout_s"])) > 70
    assert float(str(found["renderer"]["health_check_timeout_s"])) > 20
    assert (found["gateway"]["max_surge_percent"], found["renderer"]["max_surge_percent"]) == (1, 1)
    assert options(build({"serve": {"surge": False}}))["renderer"]["max_surge_percent"] == 0


def test_a_key_file_is_found_from_any_folder() -> None:
    built = build({"serve": {"keys": "keys.yaml"}})
    settings = built._bound_deployment.init_args[1]
    assert settings["keys"] == str(Path("keys.yaml").absolute())
