"""The preflight's checks of what a run loads: model, judges, features and prompts, each place tried by one task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from cluster.errors import ClusterError
from cluster.preflight.check import Check, Finding, failed, passed, warned
from jobs.run.config import RunConfig
from jobs.run.needs import STAGES, Loads, Problem, by_place, load_problems, prompt_problems, run_loads
from jobs.run.placement import placed
from safety.errors import ConfigError
from safety.taxonomy import Taxonomy

LOAD_TIMEOUT_S = 180.0
"""The longest time until a place is free and has loaded everything; a large model takes minutes from a slow disk."""
PLACE_FIRST = "fix the resources first, or wait until the cluster is less busy"


class LoadChecks:
    """The checks of a run's loads; the first that runs tries everything, and the others report on their part."""

    def __init__(self, run: RunConfig, taxonomy: Taxonomy, *, joined: bool) -> None:
        """Prepare the checks.

        Args:
            run: The run.
            taxonomy: Its taxonomy.
            joined: Whether this process is connected to the run's cluster; else this machine is the cluster.
        """
        self.run, self.taxonomy, self.joined = run, taxonomy, joined
        self._trying = threading.Lock()
        self._problems: list[Problem] | None = None
        self._tried: set[object] = set()
        self._unplaced: list[str] = []

    def checks(self) -> list[Check]:
        """Return the checks."""
        run = self.run
        judges = {judge.name for loads in run_loads(run, STAGES) if (judge := loads.judge) is not None}
        loaded = {
            "model": f"{run.model.path} loads on {run.model.device!r}",
            "judges": f"{', '.join(sorted(judges))} know(s) the taxonomy {self.taxonomy.name!r}",
            "features": "none are measured" if run.evaluate.features is None else f"{run.evaluate.features} load",
        }
        sources = run.prompts
        if sources is not None and sources.writer is not None:
            loaded["writer"] = f"{sources.writer.engine.model_name} answers"
        return [
            *(
                Check(what, lambda what=what, text=text: self._loaded(what, text), LOAD_TIMEOUT_S)  # type: ignore[misc]
                for what, text in loaded.items()
            ),
            Check("prompts", lambda: self.alone(self._prompts), LOAD_TIMEOUT_S),
        ]

    def alone(self, work: Callable[[], Finding]) -> Finding:
        """Return what a check finds that looks into a model or runs a writer, while no other one does so in this process.

        The libraries of models import their parts when these are asked for, and threads that ask at once find some missing.
        On a running cluster the work is done by tasks, which do not share a process.
        """
        with nullcontext() if self.joined else self._trying:
            return work()

    def _loaded(self, what: str, text: str) -> Finding:
        with self._trying:
            if self._problems is None:
                self._problems = self._try_all()
        own = [problem for problem in self._problems if problem.what == what]
        wanted = {loads.things[what] for loads in run_loads(self.run, STAGES) if what in loads.things}
        if not own and not wanted <= self._tried:
            return warned(f"not checked: {'; '.join(self._unplaced)}", PLACE_FIRST)
        return finding(own, text)

    def _try_all(self) -> list[Problem]:
        """Load everything where the stages will, and note the places that do not come about."""
        if not self.joined:
            every = run_loads(self.run, STAGES)
            self._tried |= {thing for loads in every for thing in loads.things.values()}
            return load_problems(every, self.taxonomy, models=True)
        problems: list[Problem] = []
        for place, group in by_place(self._placeable()):
            patient = replace(place, timeout_s=0.9 * LOAD_TIMEOUT_S)
            try:
                problems += placed(patient, load_problems, group, self.taxonomy, models=True)
            except (ClusterError, ConfigError) as error:
                self._note(error)
            else:
                self._tried |= {thing for loads in group for thing in loads.things.values()}
        return problems

    def _placeable(self) -> list[Loads]:
        """Return the loads whose place can come about; the checks of resources and GPUs report on the others too."""
        found = []
        for loads in run_loads(self.run, STAGES):
            try:
                loads.place.require()
            except (ClusterError, ConfigError) as error:
                self._note(error)
            else:
                found.append(loads)
        return found

    def _note(self, error: ClusterError | ConfigError) -> None:
        if error.message not in self._unplaced:
            self._unplaced.append(error.message)

    def _prompts(self) -> Finding:
        counts, sources = self.run.generate.counts, self.run.prompts
        if sources is None:
            text = f"{self.run.generate.writer} writes {counts.train} training pairs per category, and the other splits"
        else:
            text = f"{len(sources.pairs) + len(sources.test) + len(sources.benign)} sources"
            if sources.writer is not None:
                text += (
                    f", and {sources.writer.engine.model_name} writes {sources.writer.per_concept} pairs per concept"
                )
        return finding(prompt_problems(self.run, self.taxonomy, STAGES), text)


def finding(problems: Sequence[Problem], text: str) -> Finding:
    """Return a failed finding that names each problem's setting and fix; one with ``text`` when there is none."""
    if not problems:
        return passed(text)
    found = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    return failed(found, "; ".join(dict.fromkeys(problem.fix for problem in problems)))
