"""Named registries: how one of several implementations is chosen by a config's string."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from safety.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T], Mapping[str, T]):
    """Implementations of one protocol by name.

    An implementation registers itself where it is defined: ``@objectives.register("diffusion-dpo")``.
    """

    def __init__(self, kind: str) -> None:
        """Make an empty registry of ``kind`` ("objective", "judge"...), which error messages name."""
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its target as ``name``; raise ValueError when the name is taken."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """Return the implementation called ``name``; raise ConfigError when there is none."""
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ConfigError(f"there is no {self.kind} {name!r}", field=self.kind, fix=f"use one of: {known}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of implementations."""
        return len(self._entries)
