"""Errors cross process borders whole: Ray pickles them."""

from __future__ import annotations

import pickle

import pytest

from cluster import errors
from cluster.errors import ClusterError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClusterError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_an_error_survives_pickling(kind: type[ClusterError]) -> None:
    error = kind("it is gone", field="store.bucket", fix="make it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.field, again.fix) == ("it is gone", "store.bucket", "make it")
    assert str(again) == str(error) == "store.bucket: it is gone. Fix: make it"


def test_the_tree_in_the_docstring_names_every_error() -> None:
    listed = {line.split()[1] for line in (errors.__doc__ or "").splitlines() if line.strip().startswith("+--")}
    assert listed == {kind.__name__ for kind in KINDS} - {"ClusterError"}
