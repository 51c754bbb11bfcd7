"""What a divided base takes on a worker, against sums by hand; its training on two workers is tested in tests/jobs/train."""

from __future__ import annotations

import pytest
from torch import nn

from safety.errors import ConfigError
from safety.experts import ExpertConfig
from safety.experts.memory import measure_step
from safety.experts.sharding import blocks, is_sharded, load_sharded, sharded_bytes
from safety.families import ModelConfig


class Block(nn.Linear):
    """A block of w x (w + 1) weights."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)


class Outer(nn.Module):
    """A block with a block inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block(9)
        self.rest = nn.Linear(4, 4)


class Network(nn.Module):
    _no_split_modules = ("Block", "Outer")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3), Block(4), Outer()])


def test_a_worker_holds_its_share_what_is_no_block_and_the_two_largest_blocks_at_most() -> None:
    network = Network()
    assert [block.weight.shape[0] for block in blocks(network)] == [3, 4, 9]
    # 3 x 4, 4 x 5 and 9 x 10 numbers in blocks, and 4 x 5 in none.
    whole = 4 * (12 + 20 + 90 + 20)
    assert sharded_bytes(network, 1) == whole
    # Both of the largest block's would be more than there is.
    assert sharded_bytes(network, 2) == whole
    many = Network()
    many.blocks.extend([Block(9) for _ in range(10)])
    assert sharded_bytes(many, 4) == (whole + 4 * 900) // 4 + 4 * 20 + 2 * 4 * 90
    assert not is_sharded(many)


def test_the_estimate_of_a_step_counts_a_workers_part_alone(tiny_model_dir: object) -> None:
    model, config = ModelConfig(path=str(tiny_model_dir)), ExpertConfig(precision="fp32")
    whole, divided = (measure_step(model, config, (4, 4, 4), shards=shards) for shards in (1, 4))
    assert whole.base / 4 < divided.base < whole.base
    assert divided.model_copy(update={"base": whole.base}) == whole


def test_a_quantised_base_is_not_divided() -> None:
    with pytest.raises(ConfigError, match="weights of nf4 cannot be divided") as refused:
        load_sharded(ModelConfig(path="nowhere", quantize="nf4"))
    assert refused.value.field == "train.shard_base"
