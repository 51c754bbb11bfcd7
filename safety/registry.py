"""Named registries: one of several implementations, chosen by a config's string."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from safety.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T], Mapping[str, T]):
    """Implementations of one protocol by name.

    An implementation registers itself where it is defined: ``@objectives.register("diffusion-dpo")``. The first look-up
    imports all modules of the registry's packages, so that a file there is enough to add an implementation.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        """Make an empty registry.

        Args:
            kind: An entry's name in error messages ("objective", "judge"...).
            packages: Packages whose modules may register entries.
        """
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._undiscovered = packages

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
        self._discover()
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ConfigError(f"there is no {self.kind} {name!r}", field=self.kind, fix=f"use one of: {known}")
        return self._entries[name]

    def find(self, name: str, field: str) -> T:
        """Return a registered implementation, or the one at the import path ``module:attribute``, for one's own.

        Raises:
            ConfigError: There is none; ``field`` is the setting that names it.
        """
        module, separator, attribute = name.partition(":")
        if not separator:
            return self[name]
        try:
            found: T = getattr(import_module(module), attribute)
        except Exception as error:  # A user's own module may raise anything when it is imported.
            raise ConfigError(
                f"no {self.kind} at {name!r}: {type(error).__name__}: {error}",
                field=field,
                fix=f"name a registered {self.kind}, or an importable 'module:attribute'",
            ) from error
        return found

    def __contains__(self, name: object) -> bool:
        """Return whether there is an implementation called ``name``."""
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        self._discover()
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of implementations."""
        self._discover()
        return len(self._entries)

    def _discover(self) -> None:
        """Import the modules of the registry's packages.

        They count as imported only after the last: a look-up by another thread, or by one of the modules while it is
        being imported, goes through them as well, and so finds all entries.
        """
        for name in self._undiscovered:
            package = import_module(name)
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                if not module.ispkg:
                    import_module(module.name)
        self._undiscovered = ()
