"""Sharded models that score: a layer at a time, with the numbers of whole models, in any number of passes by rank."""

import json
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from allocated import Mapped
from families import save_qwen3
from processes import launch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workbench.distill.scoring import Batch, forward_view
from workbench.distributed import ProcessGroup, join
from workbench.policies.by_domain import PolicyByDomain
from workbench.policies.fsdp import layer_by_layer, shard, unsharded, unsharded_root
from workbench.policies.loading import load_policy
from workbench.policies.node_memory import NodeMemory, SumOnNode
from workbench.policies.proven import agree, prove_all
from workbench.policies.scattering import mapped_files, release_pages
from workbench.types import Example, Prompt, Rollout

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
CODE = "import sys; from test_layer_by_layer import work; work(*sys.argv[1:])"
LAYERS, SLACK = 8, 2**20  # bytes of activations and of what is not of the weights


def save(folder: Path, seed: int, *, tied: bool) -> Path:
    """A language model whose layers make up nearly all of it."""
    save_qwen3(folder, seed)
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 256, 1022, LAYERS
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 32
    config.layer_types, config.tie_word_embeddings = ["full_attention"] * LAYERS, tied
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = AutoTokenizer.from_pretrained(folder).eos_token_id
    model.save_pretrained(folder)
    return folder


def work(first: str, second: str, out: str) -> None:
    """One of the ranks: load two models in parts, and score with them in several ways."""
    torch.set_num_threads(1)
    group, watch = join(), Mapped()
    with watch.watching(), watch.phase("load"):
        policies = [load_policy(path, path, empty=not group.is_main, mapped=True) for path in (first, second)]
        prove_all(policies)
        agree(policies, group)
        shard(policies, group, "cpu")
    several = PolicyByDomain("teacher", {"a": policies[0], "b": policies[1]})
    with torch.no_grad(), unsharded_root(*policies):
        results = {"peaks": watch.peaks, "sizes": [sizes(policy) for policy in policies]}
        forward_all(several, [])  # ranks without a pass
        for name, rows in {"ragged": ["a", "b", "a"] if group.is_main else [], "apart": ["ab"[group.rank % 2]]}.items():
            parts, whole = forward_all(several, rows), forward_all(several, rows, whole=True)
            results[name] = [torch.equal(*pair) for pair in zip(parts, whole, strict=True)]
        for name, dtype in (("", None), (" in half", torch.bfloat16)):
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                outputs = []
                for way, whole in (("score", False), ("sample", True)):
                    with watch.watching(), watch.phase(way + name):
                        outputs += forward_all(policies[0], ["a"], whole=whole)
            results["equal" + name] = torch.equal(*outputs)
    results["sums"] = sums(group)
    Path(f"{out}.{group.rank}").write_text(json.dumps(results))


def sums(group: ProcessGroup) -> list[list[float]]:
    """This rank's parts of two sums in shared memory, which grows between them and is given back at the end."""
    memory = NodeMemory.of(group)
    reduce, parts = SumOnNode(memory), []
    for size in (2, 3000):
        values = reduce.allocate([group.size * size], dtype=torch.float32, device=torch.device("cpu"))
        values.copy_(torch.arange(group.size * size) + 0.5 * group.rank)
        part = reduce.allocate([size], dtype=torch.float32, device=torch.device("cpu"))
        reduce(part, values, torch.distributed.group.WORLD, torch.distributed.ReduceOp.SUM)
        parts.append(part[:2].tolist())
    group.all_gather_object(memory.nbytes)
    memory.release_summand()
    group.all_gather_object("released")
    assert memory.nbytes * group.size <= 4096  # what the token is in
    return parts


def forward_all(policy: object, domains: list[str], *, whole: bool = False) -> list[torch.Tensor]:
    """Logits of an answer for each domain, each in a pass of its own."""
    rollouts = [Rollout(Example(str(row), ""), row, (5, 6, 7, 8), "", False) for row in range(len(domains))]
    prompts = tuple(Prompt((), "what is left?", key=str(row), domain=domain) for row, domain in enumerate(domains))
    with unsharded(policy) if whole else layer_by_layer(policy):
        if not rollouts:
            return []
        output = forward_view(policy, prompts, Batch(tuple(rollouts), micro_batch_size=1))
        return [output.logits(torch.arange(4 * len(rollouts)))]


def sizes(policy: object) -> dict[str, int]:
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in policy.shards.layers]
    return {"layer": max(layers), "root": sum(weight.nbytes for weight in policy.model.parameters()) - sum(layers)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wide")
    return [str(save(folder / name, seed, tied=tied)) for name, seed, tied in (("a", 0, False), ("b", 1, True))]


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("processes", [2, 4])
def test_sharded_models_load_once_and_score_in_parts(processes: int, folders: list[str], tmp_path: Path) -> None:
    arguments = *folders, str(tmp_path / "out")
    ended = launch(tmp_path / "ranks", CODE, *arguments, processes=processes, environment=SHARDED)
    assert not any(item.returncode for item in ended), [item.stderr[-2000:] for item in ended]
    ranks = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in range(processes)]
    copies = [LAYERS * size["layer"] + size["root"] for size in ranks[0]["sizes"]]
    assert sum(rank["peaks"]["load"] for rank in ranks) <= 1.3 * sum(copies)  # rank 0 leaves the files mapped
    for rank_idx, rank in enumerate(ranks):
        size = rank["sizes"][0]
        whole, peaks = LAYERS * size["layer"], rank["peaks"]
        # above its parts and the roots: a layer, and its flat buffer or the next layer's
        assert peaks["score"] <= 2 * size["layer"] + SLACK
        assert whole <= peaks["sample"] <= whole + size["layer"] + SLACK
        # autocast's copies: of weights that compute, and of the model that is whole in place of it
        assert peaks["score in half"] <= 2.5 * size["layer"] + SLACK
        assert whole / 2 <= peaks["sample in half"] <= whole / 2 + 2 * size["layer"] + SLACK
        assert rank["apart"] == [True]
        assert rank["equal"] and rank["equal in half"]
        halves = sum(range(processes)) / 2
        firsts = [rank_idx * size for size in (2, 3000)]
        assert rank["sums"] == [[processes * (first + idx) + halves for idx in (0, 1)] for first in firsts]
    assert [rank["ragged"] for rank in ranks] == [[True], *[[]] * (processes - 1)]


def test_release_pages_drops_those_of_a_file_and_no_number(tmp_path: Path) -> None:
    size = 2**24
    safetensors.torch.save_file({"a": torch.arange(size)}, tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        mapped, ordinary = file.get_tensor("a"), torch.arange(size)
        assert torch.equal(mapped, ordinary)
        before = psutil.Process().memory_info().rss
        release_pages(ordinary, mapped_files())
        release_pages(mapped, mapped_files())
        dropped = before - psutil.Process().memory_info().rss
        assert 0.9 * mapped.nbytes < dropped < 1.1 * mapped.nbytes
        assert torch.equal(mapped, ordinary)


@pytest.mark.subprocess
def test_rank_with_another_structure_is_named(folders: list[str], tmp_path: Path) -> None:
    code = "import sys; from test_layer_by_layer import differ; differ(*sys.argv[1:])"
    ended = launch(tmp_path, code, *folders, environment=SHARDED)
    assert [item.returncode for item in ended] == [1, 1]
    assert "is built differently by rank 1" in ended[1].stderr


def differ(first: str, second: str) -> None:
    """Rank 1 builds another model than rank 0 reads."""
    group: ProcessGroup = join()
    policy = load_policy(first if group.is_main else second, "teacher", empty=not group.is_main)
    with group.propagate_errors():
        shard([policy], group, "cpu")
        group.all_gather_object("sharded")
