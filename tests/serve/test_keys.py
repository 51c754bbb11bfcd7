"""Key files: what they hold, how they change, and the command that makes them."""

from __future__ import annotations

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from safety.errors import ConfigError
from serve.access import Access, TokenBucket
from serve.errors import ApiError
from serve.keys import KeyEntry, KeyRing, app, new_key, read_keys

runner = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_new_key_is_printed_once_and_only_its_hash_is_kept(file: Path) -> None:
    made = runner.invoke(app, ["new", "--name", "alice", "--file", str(file), "--images-per-minute", "30"])
    key = made.output.strip()
    assert made.exit_code == 0
    assert len(key) >= 48
    document = yaml.safe_load(file.read_text())
    [entry] = document["keys"]
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert (entry["name"], entry["images_per_minute"]) == ("alice", 30)
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file], "nothing is left beside it"


def test_keys_made_at_once_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: new_key(file, f"name-{i}", None, None), range(24)))
    kept = {entry.sha256 for entry in read_keys(file).keys}
    assert kept == {hashlib.sha256(key.encode()).hexdigest() for key in made}
    assert len(kept) == 24


def test_a_name_is_given_once(file: Path) -> None:
    new_key(file, "alice", None, None)
    again = runner.invoke(app, ["new", "--name", "alice", "--file", str(file)])
    assert again.exit_code == 2
    assert len(read_keys(file).keys) == 1


@pytest.mark.parametrize(("name", "requests"), [("", None), ("two words", None), ("alice", 0)])
def test_a_wrong_name_or_limit_is_refused(file: Path, name: str, requests: int | None) -> None:
    with pytest.raises(ConfigError):
        new_key(file, name, requests, None)
    assert not file.exists()


def test_keys_are_listed_and_revoked(file: Path) -> None:
    new_key(file, "alice", 5, None)
    assert runner.invoke(app, ["list", "--file", str(file)]).output == "alice: 5 requests, any images per minute\n"
    assert runner.invoke(app, ["revoke", "--name", "alice", "--file", str(file)]).exit_code == 0
    assert runner.invoke(app, ["list", "--file", str(file)]).output == "alice: revoked\n"
    assert runner.invoke(app, ["revoke", "--name", "nobody", "--file", str(file)]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("keys: [", "not YAML"),
        ("keys: [{name: a, sha256: SECRET}]", r"keys\.0\.sha256"),
        ("kyes: []", "kyes"),
        (f"keys: [{{name: a, sha256: {'a' * 64}}}, {{name: a, sha256: {'b' * 64}}}]", "one name"),
        (f"keys: [{{name: a, sha256: {'a' * 64}}}, {{name: b, sha256: {'a' * 64}}}]", "one hash"),
    ],
)
def test_a_wrong_file_is_named_without_repeating_it(file: Path, text: str, match: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        read_keys(file)
    assert "SECRET" not in str(caught.value)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyRing(file)


def test_a_ring_takes_new_keys_and_keeps_the_old_ones_when_the_file_breaks(file: Path) -> None:
    now = [0.0]
    first = new_key(file, "alice", None, None)
    ring = KeyRing(file, lambda: now[0])
    second = new_key(file, "bob", None, None)
    now[0] += 10
    assert ring.find(f"Bearer {second}").name == "bob"
    file.write_text("keys: [")
    now[0] += 10
    assert ring.find(f"bearer  {first}").name == "alice"
    file.unlink()
    now[0] += 10
    assert ring.find(f"Bearer {first} ").name == "alice"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "Bearer é", "abc", "Bearer a,b c"])
def test_a_header_that_is_no_bearer_token_is_401(file: Path, header: str | None) -> None:
    new_key(file, "alice", None, None)
    with pytest.raises(ApiError) as caught:
        KeyRing(file).find(header)
    assert (caught.value.failure.status, caught.value.failure.code) == (401, "missing_api_key")


def test_a_bucket_gives_a_minutes_worth_and_fills_at_its_rate() -> None:
    bucket = TokenBucket(60, now=0.0)
    assert [bucket.take(30, 0.0), bucket.take(30, 0.0)] == [0.0, 0.0]
    assert bucket.take(5, 2.0) == pytest.approx(3.0)
    assert bucket.take(5, 5.0) == 0.0
    assert bucket.take(60, 1000.0) == 0.0
    bucket.give_back(1000)
    assert bucket.take(61, 1000.0) > 0.0, "no more than a minute's worth is ever saved up"


def test_over_a_long_time_no_more_is_given_than_the_rate_and_a_burst() -> None:
    bucket = TokenBucket(90, now=0.0)
    given = sum(bucket.take(1, step * 0.1) == 0.0 for step in range(6001))
    assert 900 + 90 - 2 <= given <= 900 + 90


def test_a_request_for_more_images_than_a_minute_holds_can_never_succeed(file: Path) -> None:
    key = new_key(file, "alice", None, 2)
    access = Access(KeyRing(file))
    caller = access.admit(f"Bearer {key}")
    with pytest.raises(ApiError) as caught:
        access.charge_images(caller, 3)
    assert (caught.value.failure.status, caught.value.failure.param) == (400, "n")


def test_a_changed_limit_counts_anew(file: Path) -> None:
    entry = KeyEntry(name="a", sha256="0" * 64, requests_per_minute=1)
    access = Access(None, lambda: 0.0)
    access._take(entry, "requests", 1, 1)
    with pytest.raises(ApiError):
        access._take(entry, "requests", 1, 1)
    access._take(entry, "requests", 2, 1)
