"""The search space holds its start, and the rules of choice cannot lose to it."""

from __future__ import annotations

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safety.gates import GateConfig
from safety.merge.methods.co_merge import CoMergeConfig
from safety.merge.search import SearchConfig, SearchSpace, Trial, best, in_order, shortlist
from safety.merge.selection import select_soft

EXPERTS = ("hate", "self-harm", "violence")

starts = st.builds(
    CoMergeConfig,
    granularity=st.sampled_from(["row", "weight", "input"]),
    gate=st.builds(GateConfig, benign=st.floats(0.01, 10)),
    score=st.sampled_from(["vote", "sum"]),
    selection=st.sampled_from(["hard", "soft"]),
    tau=st.floats(0, 0.9),
    temperature=st.floats(0.001, 10),
    lambdas=st.dictionaries(st.sampled_from(EXPERTS), st.floats(0, 3)),
    block_factors=st.dictionaries(st.sampled_from(["down", "mid", "up"]), st.floats(0, 3)),
)


def trial(parameters: dict[str, str | float], score: float, finished: float = 0.0) -> Trial:
    return Trial(
        parameters=parameters, score=score, harm=score, drift=0, harm_by_category={}, seconds=1, finished=finished
    )


@settings(max_examples=60, deadline=None)
@given(start=starts)
def test_the_start_is_a_point_of_its_space(start: CoMergeConfig) -> None:
    space = SearchSpace(EXPERTS, start, SearchConfig())
    assert space.candidate(space.start) == start
    assert set(space.start) == set(space.distributions)
    for name, distribution in space.distributions.items():
        assert distribution._contains(distribution.to_internal_repr(space.start[name])), name


def test_a_start_without_a_weight_of_benign_prompts_spans_a_space_too() -> None:
    """It is a setting that a run may have, and a logarithmic scale has no zero."""
    start = CoMergeConfig(granularity="input", gate=GateConfig(benign=0.0, directions=None))
    space = SearchSpace(["a", "b"], start, SearchConfig())
    assert space.holds(space.start)
    assert all(space.holds(point) for point in space.first_points)
    assert space.candidate(space.start).gate.benign == 0.0


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"benign": (0.0, 4.0)}, "greater than 0"),
        ({"temperature": (0.0, 1.0)}, "greater than 0"),
        ({"tau": (0.0, 1.0)}, "less than 1"),
        ({"benign": (4.0, 1.0)}, r"begins above its end; write \[1, 4\]"),
    ],
)
def test_a_range_that_no_search_can_have_is_refused_before_any_work(
    ranges: dict[str, tuple[float, float]], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        SearchConfig.model_validate(ranges)


def test_multipliers_act_on_the_start() -> None:
    start = CoMergeConfig(lambdas={"hate": 2.0}, block_factors={"mid": 0.5})
    space = SearchSpace(EXPERTS, start, SearchConfig())
    found = space.candidate(space.start | {"strength": 1.5, "expert:violence": 1.2, "block:mid": 1.1, "score": "sum"})
    assert found.lambdas == pytest.approx({"hate": 3.0, "self-harm": 1.5, "violence": 1.8})
    assert found.block_factors == pytest.approx({"mid": 0.55})
    assert (found.score, found.granularity) == ("sum", start.granularity)


def test_every_first_point_and_every_proposal_is_a_valid_configuration() -> None:
    space = SearchSpace(EXPERTS, CoMergeConfig(), SearchConfig(startup=4))
    study = optuna.create_study(sampler=space.sampler(2**40))
    points = list(space.first_points)
    assert points[0] == space.start
    for _ in range(8):
        proposed = study.ask(space.distributions)
        points.append(proposed.params)
        study.tell(proposed, float(proposed.params["strength"]))
    configs = [space.candidate(point) for point in points]
    assert all(CoMergeConfig.model_validate(config.model_dump()) == config for config in configs)
    assert len({config.model_dump_json() for config in configs}) == len(points)


@settings(deadline=None)
@given(scores=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_one_of_the_first_points_is_nearly_the_experts_sum(scores: list[float]) -> None:
    space = SearchSpace(EXPERTS, CoMergeConfig(), SearchConfig())
    soft = next(found for point in space.first_points if (found := space.candidate(point)).selection == "soft")
    shares = select_soft(torch.tensor(scores)[:, None], soft.tau, soft.temperature).coefficients[:, 0]
    for expert, share in zip(EXPERTS, shares.tolist(), strict=True):
        assert share * soft.lambdas[expert] == pytest.approx(1.0, rel=0.1)


def test_proposals_depend_on_the_seed_alone() -> None:
    def proposals(seed: int) -> list[dict[str, object]]:
        space = SearchSpace(EXPERTS, CoMergeConfig(), SearchConfig())
        study = optuna.create_study(sampler=space.sampler(seed))
        return [study.ask(space.distributions).params for _ in range(3)]

    assert proposals(3) == proposals(3)
    assert proposals(3) != proposals(4)


def test_trials_are_ordered_with_the_start_first_and_doubles_dropped() -> None:
    start: dict[str, str | float] = {"strength": 1.0}
    ordered = in_order(
        [
            trial({"strength": 3.0}, 2, 30),
            trial({"strength": 2.0}, 4, 10),
            trial(start, 3, 20),
            trial({"strength": 2.0}, 4, 40),
        ],
        start,
    )
    assert [item.parameters["strength"] for item in ordered] == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="start is not among"):
        in_order([trial({"strength": 3.0}, 2)], start)


@settings(deadline=None)
@given(scores=st.lists(st.floats(0, 5), min_size=1, max_size=9), count=st.integers(0, 5))
def test_shortlist_is_the_start_and_the_best_others(scores: list[float], count: int) -> None:
    trials = [trial({"strength": float(index)}, score) for index, score in enumerate(scores)]
    chosen = shortlist(trials, count)
    assert chosen[0] == 0
    assert len(chosen) == len(set(chosen)) == 1 + min(count, len(scores) - 1)
    left = set(range(1, len(scores))) - set(chosen)
    assert all(scores[inside] <= scores[outside] for inside in chosen[1:] for outside in left)


@settings(deadline=None)
@given(objectives=st.dictionaries(st.integers(1, 9), st.floats(0, 3)), start=st.floats(0, 3))
def test_the_choice_never_loses_to_the_start(objectives: dict[int, float], start: float) -> None:
    confirmed = {**objectives, 0: start}
    chosen = best(confirmed)
    assert confirmed[chosen] == min(confirmed.values())
    assert confirmed[chosen] < start or chosen == 0


def test_a_space_holds_its_own_points_alone() -> None:
    space = SearchSpace(("hate", "violence"), CoMergeConfig(), SearchConfig())
    assert all(space.holds(point) for point in space.first_points)
    for change in ({"strength": 1e9}, {"strength": "much"}, {"score": "luck"}, {"score": 1.0}, {"expert:other": 1.0}):
        assert not space.holds({**space.start, **change})
    assert not space.holds({name: value for name, value in space.start.items() if name != "tau"})
