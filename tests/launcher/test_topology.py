"""What a recipe can be shared among, and the messages when it cannot."""

import pytest

from llmrl.algos.build import check_shares
from llmrl.errors import ConfigError
from llmrl.launcher.command import local_command
from llmrl.launcher.placement import placement
from llmrl.launcher.rank import share
from llmrl.launcher.topology import Topology, topology
from llmrl.settings.load import load_recipe, recipes_folder

RECIPE = load_recipe(recipes_folder() / "arithmetic" / "grpo.yaml")  # 16 prompts a step


def test_a_misspelt_back_end_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"--backend fsdp: there is no such back-end; did you mean 'fsdp2'\?"):
        topology(backend="fsdp", nodes=1, gpus_per_node=8, processes=None)


def test_processes_that_contradict_the_gpus_are_refused():
    with pytest.raises(ConfigError, match="each GPU is driven by one process"):
        topology(backend="ddp", nodes=1, gpus_per_node=8, processes=4)


@pytest.mark.parametrize(
    ("chosen", "advice"),
    [
        (Topology(nodes=3, gpus_per_node=8), "use rollout.prompts_per_step=24, or 16 processes"),
        (Topology(processes_per_node=3), r"use rollout.prompts_per_step=18 \(or 15\), or 2 processes"),
    ],
)
def test_prompts_that_cannot_be_shared_come_with_numbers_that_can(chosen, advice):
    with pytest.raises(ConfigError, match=advice):
        check_shares(RECIPE, ranks=chosen.world)


def test_the_numbers_of_the_advice_are_accepted():
    for prompts in (15, 18):
        rollout = RECIPE.rollout.model_copy(update={"prompts_per_step": prompts})
        check_shares(RECIPE.model_copy(update={"rollout": rollout}), ranks=3)
    check_shares(RECIPE, ranks=2)


def test_every_rank_is_placed_once_and_gets_its_share_of_prompts():
    rows = dict(placement(RECIPE, Topology(nodes=2, gpus_per_node=8)))
    assert rows["processes"] == "16: 2 nodes x 8, each on one GPU"
    assert rows["node 0"].startswith("ranks 0 to 7,") and rows["node 1"].startswith("ranks 8 to 15,")
    assert rows["each process, a step"] == "1 prompt x 8 = 8 samples"


def test_several_nodes_without_a_meeting_point_are_refused():
    with pytest.raises(ConfigError, match="need --head"):
        local_command(Topology(nodes=2, gpus_per_node=8), ["train", "r.yaml"], name="run")


def test_nodes_meet_at_the_head_each_with_its_own_rank():
    chosen = Topology(nodes=2, gpus_per_node=8)
    command = local_command(chosen, ["train", "r.yaml"], name="run", head="first", node_rank=1)
    text = " ".join(command.arguments)
    assert "--nnodes 2 --node-rank 1 --rdzv-backend c10d --rdzv-endpoint first:29500 --rdzv-id run" in text
    assert text.endswith("--nproc-per-node 8 -m llmrl train r.yaml")
    assert int(command.environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30  # torchrun's own is too short to save


def test_one_process_needs_no_launcher():
    assert local_command(Topology(), ["train", "r.yaml"], name="run").arguments[1:] == (
        "-m",
        "llmrl",
        "train",
        "r.yaml",
    )


@pytest.mark.parametrize(("cores", "ranks"), [(2, 2), (7, 3), (8, 2), (1, 4), (3, 3)])
def test_ranks_share_all_cores_and_no_core_twice_unless_there_are_too_few(cores, ranks):
    parts = [share(range(10, 10 + cores), rank=rank, ranks=ranks) for rank in range(ranks)]
    assert all(parts)
    assert {core for part in parts for core in part} == set(range(10, 10 + cores))
    if cores >= ranks:
        assert sum(map(len, parts)) == cores and max(map(len, parts)) - min(map(len, parts)) <= 1
