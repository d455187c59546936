"""The hardware files: each is read by accelerate itself."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).resolve().parents[1] / "accelerate_configs"
# What each file asks for: distributed type, machines, processes, CPU.
EXPECTED = {
    "cpu": (DistributedType.NO, 1, 1, True),
    "single_gpu": (DistributedType.NO, 1, 1, False),
    "multi_gpu": (DistributedType.MULTI_GPU, 1, 8, False),
    "multi_node": (DistributedType.MULTI_GPU, 2, 16, False),
    "fsdp2": (DistributedType.FSDP, 1, 8, False),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 1, 8, False),
}


def test_every_file_is_known_here():
    assert {path.stem for path in FOLDER.rglob("*.y*ml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    found = (config.distributed_type, config.num_machines, config.num_processes, config.use_cpu)
    assert found == EXPECTED[name]
    # Precision is the recipes' own; a second one here would compete with it.
    assert config.mixed_precision == "no"
    unknown = set(yaml.safe_load(path.read_text())) - set(config.to_dict())
    assert not unknown
