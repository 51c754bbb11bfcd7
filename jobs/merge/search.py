"""The search for Co-Merge's coefficients on Ray: Tune trials scored by the surrogate, then rendered scores of the best.

Every finished trial and rendered score is written to the store's work area at once, and a restarted run reads them
back. So nothing finished is repeated, and Tune's own snapshot, a local pickle, is never needed.
"""

from __future__ import annotations

import io
import logging
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.markup import escape

from cluster.progress import StageProgress
from cluster.resources import timeout_error
from jobs.merge.rendered_scores import Candidates, score_all
from jobs.merge.source import ProbeSource
from jobs.run.metrics import BEST_SCORE, TRIALS
from jobs.run.ray_data import first_cause
from jobs.run.retries import Retries, is_lasting
from jobs.run.work_area import Records
from safety.families import load_model
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration
from safety.merge.methods.co_merge import CoMerge, block_groups
from safety.merge.rendered_score import SPLIT, RenderedScore
from safety.merge.search import Parameters, SearchSpace, Trial, best, in_order, shortlist
from safety.merge.surrogate import Surrogate
from safety.merge.weight_form import dense_bytes

logger = logging.getLogger(__name__)

METRIC = "score"


@dataclass(frozen=True)
class SearchInputs(Candidates):
    """The inputs of trials and rendered scores."""

    run: str
    """The run's name."""
    experts: dict[str, LoraWeights]
    statistics: Calibration
    probes: ProbeSource
    """Where a worker gathers the probes of the validation split."""

    @property
    def space(self) -> SearchSpace:
        """Return the search space."""
        layers = next(iter(self.experts.values()))
        config = self.config
        return SearchSpace(
            list(self.experts), config.co_merge, config.search, block_groups(layers), weight_bytes=dense_bytes(layers)
        )

    @cached_property
    def co_merge(self) -> CoMerge:
        """The method, which keeps what candidates have in common: one in each process, never sent to another."""
        return CoMerge(self.model.device, keep=True)

    def merged(self, parameters: Mapping[str, Any]) -> LoraWeights:
        """Return the merge at a point of the space."""
        return self.co_merge(self.experts, self.statistics, self.space.candidate(parameters)).weights


class TrialScorer:
    """Scores points of the space with one loaded model; a point with a record is not scored again.

    The model loads at the first score and not in the constructor, so that a wrong one raises its own error instead of
    killing the actor.
    """

    def __init__(self, inputs: SearchInputs, records: Records) -> None:
        self.inputs, self.records = inputs, records

    @cached_property
    def surrogate(self) -> Surrogate:
        """Load the model and compute the base's predictions."""
        torch.set_num_threads(self.inputs.config.threads)
        inputs = self.inputs
        config = inputs.config.surrogate
        model = load_model(inputs.model, "denoiser")
        probes = inputs.probes.gather(SPLIT, config.pairs_per_category, config.benign)
        return Surrogate(model, probes, config, inputs.seed)

    def score(self, parameters: Parameters) -> Trial:
        """Return the finished trial of a point."""
        found = self.records.read("trials", parameters, Trial)
        if found is not None:
            return found
        surrogate = self.surrogate
        started = time.monotonic()
        score = surrogate.score(self.inputs.merged(parameters))
        trial = Trial(
            parameters=parameters,
            score=score.total,
            harm=score.harm,
            drift=score.drift,
            harm_by_category=score.harm_by_category,
            seconds=time.monotonic() - started,
            finished=time.time(),
        )
        self.records.write("trials", parameters, trial)
        return trial


class MergeTrial(tune.Trainable):  # type: ignore[misc]
    """A Tune trial: one step scores one point. Its process loads the model once and is reused for further trials."""

    def setup(self, _config: dict[str, Any], *, inputs: SearchInputs, records: Records) -> None:
        """Build the scorer that all trials of this process share."""
        self.names = tuple(inputs.space.start)
        self.scorer = TrialScorer(inputs, records)

    def save_checkpoint(self, _folder: str) -> None:
        """Save nothing: a trial is one step, and its score is in the store when the step ends."""

    def load_checkpoint(self, _checkpoint: Any) -> None:
        """Restore nothing (see ``save_checkpoint``)."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Accept the next trial's point."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Score the point, and finish."""
        trial = self.scorer.score({name: self.config[name] for name in self.names})
        harms = {f"harm/{category}": value for category, value in trial.harm_by_category.items()}
        return {METRIC: trial.score, "harm": trial.harm, "drift": trial.drift, **harms, "done": True}


class _Reporter(tune.Callback):  # type: ignore[misc]
    """Reports each finished trial, in the stage's progress and to Prometheus."""

    def __init__(self, run: str, progress: StageProgress) -> None:
        self.run, self.progress = run, progress
        self.best = float("inf")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into the snapshot that is never read here; a terminal cannot be pickled.
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self.best = min(self.best, float(trial.last_result.get(METRIC, self.best)))
        TRIALS.add(run=self.run)
        BEST_SCORE.set(self.best, run=self.run)
        self.progress.advance(1, f"best {self.best:.3f}")


class _EndAtOnce(tune.Callback):  # type: ignore[misc]
    """Ends the search at a failure that would come again at every point; Tune alone would try each point again.

    An unknown error of one point is the point's, once another was scored, and costs that trial alone.
    """

    def __init__(self, *, scored: bool) -> None:
        self.final: BaseException | None = None
        self._retries: dict[str, Retries] = {}
        self._scored = scored

    def __getstate__(self) -> dict[str, Any]:
        # For Tune's snapshot, which is never read here.
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._scored = True

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._check(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._check(trial)

    def _check(self, trial: Any) -> None:
        error = _error_of(trial)
        if error is None:
            return
        found = self._retries.setdefault(trial.trial_id, Retries()).final([error])
        if found is not None and (is_lasting(found) or not self._scored):
            self.final = found
            raise found


def _error_of(trial: Any) -> BaseException | None:
    """Return what a trial has just failed with, if it left more than words.

    It is read where this process, Tune's driver, has written it. Tune's own way reads the experiment's storage, which gets
    the file now and then, often after the next try has begun.
    """
    path = trial.pickled_error_file
    if path is None or not Path(path).is_file():
        return None
    error: BaseException = pickle.loads(Path(path).read_bytes())  # noqa: S301 (this process wrote it, see above)
    return error


def search(inputs: SearchInputs, records: Records, logs: Path, console: Console) -> list[Trial]:
    """Run the trials that are not finished yet; return all finished ones, the start first.

    Args:
        inputs: The trials' inputs.
        records: The store of finished trials.
        logs: Local folder for Tune's TensorBoard, JSON and CSV logs.
        console: The console on which progress is shown.

    Raises:
        SafetyError: The first cause of a failure to score the start.
        ClusterError: The start was not scored in time.
    """
    space, config = inputs.space, inputs.config
    done = finished_trials(records, space)
    left = config.search.trials - len(done)
    failed: list[Exception] = []
    if left > 0:
        total = config.search.trials
        with StageProgress(console, "merge search", total, "trials", done=len(done)) as progress:
            failed = run_trials(inputs, records, done, left, logs, progress)
        done = finished_trials(records, space)
    if space.start not in [trial.parameters for trial in done]:
        if failed:
            raise first_cause(failed[0])
        raise timeout_error("the search did not score its start", config.timeout_s, "merge.timeout_s")
    if failed:
        console.print(f"[yellow]{len(failed)} trials failed, the first by:[/] {escape(str(first_cause(failed[0])))}")
    return in_order(done, space.start)


def finished_trials(records: Records, space: SearchSpace) -> list[Trial]:
    """Return the trials that are finished; records of points outside the space are named and ignored."""
    found = records.all("trials", Trial)
    for trial in found:
        if not space.holds(trial.parameters):
            logger.warning("a trial in %s is of no point of this search and is ignored", records.area.place)
    return [trial for trial in found if space.holds(trial.parameters)]


def run_trials(
    inputs: SearchInputs, records: Records, done: list[Trial], left: int, logs: Path, progress: StageProgress
) -> list[Exception]:
    """Run ``left`` trials on Tune; return the errors of those that failed.

    Raises:
        SafetyError: An error that would come again at every point.
    """
    config, space = inputs.config, inputs.space
    known = [trial.parameters for trial in done]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = OptunaSearch(
        space.distributions,
        metric=METRIC,
        mode="min",
        sampler=space.sampler(inputs.seed + len(done)),
        points_to_evaluate=[point for point in space.first_points if point not in known],
    )
    for trial in done:
        searcher.add_evaluated_point(trial.parameters, trial.score)
    trainable = tune.with_resources(
        tune.with_parameters(MergeTrial, inputs=inputs, records=records),
        {"cpu": config.cpus_per_worker, "gpu": config.gpus_per_worker},
    )
    logs.mkdir(parents=True, exist_ok=True)
    ending = _EndAtOnce(scored=bool(done))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=left,
            max_concurrent_trials=config.workers,
            time_budget_s=config.timeout_s,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            # A new name per start: Tune would refuse or mix up the folder of an interrupted experiment.
            name=f"start-{len(list(logs.iterdir()))}",
            storage_path=str(logs.resolve()),
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            # A trial is one step whose result is in the records: there is nothing to checkpoint.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[
                TBXLoggerCallback(),
                JsonLoggerCallback(),
                CSVLoggerCallback(),
                _Reporter(inputs.run, progress),
                ending,
            ],
            verbose=0,
        ),
    )
    with _quiet(progress.console):
        try:
            return list(tuner.fit().errors)
        except Exception as error:
            # Tune keeps of a callback's error its text alone.
            raise first_cause(ending.final or error) from error


@contextmanager
def _quiet(console: Console) -> Iterator[None]:
    """Suppress the lines that Tune prints at any verbosity, which would break the progress shown on ``console``."""
    console.file = console.file  # Bound to the present sys.stdout, so that the redirection does not silence it too.
    with redirect_stdout(io.StringIO()):
        yield


def render_best(
    trials: list[Trial], inputs: SearchInputs, records: Records, console: Console
) -> tuple[dict[int, RenderedScore], int]:
    """Render the start and the best other trials; return their scores by position, and the chosen position."""
    candidates = {position: trials[position].parameters for position in shortlist(trials, inputs.config.search.confirm)}
    scores = score_all(candidates, inputs, records, console, "merge confirmation")
    return scores, best({position: score.objective for position, score in scores.items()})
