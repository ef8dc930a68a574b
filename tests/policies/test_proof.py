"""A shortcut of a policy gives the numbers of its model's forward pass, or is switched off; other differences raise."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from failures import raises
from families import save_aya_vision, save_llama
from small import run_config
from text_families import plain_logprobs, save_text_model, text_policy
from transformers import AutoModelForCausalLM

import workbench.policies.proven
from workbench.config.schema import build_config
from workbench.distill.losses import score
from workbench.errors import PolicyError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.loading import load_policies
from workbench.policies.proven import prove_once
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.folder import RunFolder
from workbench.training.run import train
from workbench.training.scorer import evaluate_model, open_scorer
from workbench.types import Prompt

SHORT, LONG = Prompt((), "red", key="a"), Prompt((), "what is the color of the sky over there?", key="b")
ROWS, COMPLETIONS = [SHORT, LONG, SHORT], [(300, 301, 302), (303,), (304, 305)]
# what each family lacks: positions of its own under padding; a mask for its states; a cache of transformers' kind
ABSOLUTE = {"n_embd": 32, "n_head": 4, "n_layer": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 64, "num_layers": 2, "num_heads": 4}
UNUSUAL = {
    "gpt2": (ABSOLUTE, {"positions"}),
    "gpt_neo": (LOCAL, {"positions"}),
    "rwkv": ({"attention_hidden_size": 32}, {"rows", "cache"}),
    "recurrent_gemma": (
        {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"], "lru_width": 32},
        {"rows", "prompts"},
    ),
    "gemma2": ({"query_pre_attn_scalar": 8, "sliding_window": 64, "final_logit_softcapping": 3.0}, set()),
    "cohere": ({"logit_scale": 0.25}, set()),
}


def read(policy: AutoregressivePolicy) -> torch.Tensor:
    return score(policy.forward(ROWS, COMPLETIONS), torch.tensor(sum(COMPLETIONS, ()))).logprob


def expected(policy: AutoregressivePolicy) -> torch.Tensor:
    return torch.cat([plain_logprobs(policy, *row) for row in zip(ROWS, COMPLETIONS, strict=True)])


@pytest.mark.parametrize("family", list(UNUSUAL))
def test_proof_switches_off_failing_shortcuts(family: str, tmp_path: Path) -> None:
    values, off = UNUSUAL[family]
    policy = text_policy(tmp_path, family, values)
    assert policy.prove().off.keys() == off and not policy.proof.differs
    assert torch.allclose(read(policy), expected(policy), atol=1e-5)
    (first, second), _ = policy.sample([SHORT, LONG], [[1, 2], [3]], SamplingOptions(5))
    for item in (first, second):
        assert torch.allclose(torch.tensor(item.logprobs), plain_logprobs(policy, SHORT, item.ids), atol=1e-5)


def test_proof_follows_logit_scale_that_transformers_omits(tmp_path: Path) -> None:
    policy = load_policy(save_aya_vision(tmp_path), "student")
    assert policy.model.config.text_config.logit_scale == 0.25
    policy.prove()
    assert policy.head.scale == 1.0 and not policy.proof.off


def own_forward(model: torch.nn.Module, change: object) -> None:
    forward = type(model).forward

    def changed(*arguments: object, **options: object) -> object:
        output = forward(model, *arguments, **options)
        output.logits = change(output.logits)
        return output

    model.forward = changed


def test_proof_other_logits_switch_off_the_head(tmp_path: Path) -> None:
    policy = load_policy(save_llama(tmp_path), "student")
    slope = torch.linspace(0.5, 2.0, policy.vocabulary)
    own_forward(policy.model, lambda logits: logits * slope)
    policy.model.requires_grad_(True)
    assert policy.prove().off.keys() == {"head"}
    result = read(policy)
    assert torch.allclose(result, expected(policy), atol=1e-5)
    policy.forward(ROWS, COMPLETIONS).hidden.sum().backward()
    assert policy.model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_proof_forbidden_tokens_have_no_probability(tmp_path: Path) -> None:
    policy = load_policy(save_llama(tmp_path), "student")
    lowest = torch.finfo(torch.float32).min
    own_forward(policy.model, lambda logits: logits.index_fill(-1, torch.tensor([7, 9]), lowest))
    assert not policy.prove().off and policy.head.never == (7, 9)
    assert torch.allclose(read(policy), expected(policy), atol=1e-5)


def test_proof_differing_scores_raise_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_llama(tmp_path)
    monkeypatch.setattr(
        AutoregressivePolicy, "plain_logits", lambda self, _, completion: torch.randn(len(completion), self.vocabulary)
    )
    with raises(PolicyError, "accept_differences=true"):
        load_policies((), student=folder)
    with caplog.at_level(logging.INFO, "workbench"):
        load_policies((), student=folder, accept_differences=True)
    assert "student: its scores differ from the model's own forward pass" in caplog.text


def test_proof_of_copy_is_that_of_its_model(tmp_path: Path) -> None:
    policy = text_policy(tmp_path, "rwkv", {"attention_hidden_size": 32})
    assert policy.prove().off.keys() == {"rows", "cache"}
    policy.stop_ids, policy.head = frozenset({2, 7}), replace(policy.head, eos_ids=(2, 7))
    twin = policy.copy("student@ema")
    assert twin.proof is policy.proof and twin.shortcuts == policy.shortcuts
    assert twin.stop_ids == policy.stop_ids and twin.head.eos_ids == policy.head.eos_ids
    assert torch.equal(read(twin), read(policy))


def test_scorer_and_evaluation_apply_rule_of_check(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(workbench.policies.proven, "_known", {})
    monkeypatch.setattr(
        AutoregressivePolicy, "plain_logits", lambda self, _, completion: torch.randn(len(completion), self.vocabulary)
    )
    config = run_config(models, tmp_path)
    with raises(PolicyError, "accept_differences=true"):
        open_scorer(config)
    values = replace(config.models, accept_differences=True)
    with caplog.at_level(logging.INFO, "workbench"):
        open_scorer(replace(config, models=values))
        assert "teacher: its scores differ from the model's own forward pass" in caplog.text
        caplog.clear()
        evaluate_model(models["student"], data="scenes:eval?count=1", max_completion_length=2)
    assert "model: its scores differ from the model's own forward pass" in caplog.text


def test_proof_is_stored_once_per_model_files(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(workbench.policies.proven, "_known", {})
    names = ("student@start", "student@ema", "teacher")
    policies = load_policies(names, student=models["student"], teacher=models["teacher"])
    assert len(list((tmp_path / "proofs").glob("*.json"))) == 2
    monkeypatch.setattr(workbench.policies.proven, "_known", {})
    monkeypatch.setattr(AutoregressivePolicy, "prove", lambda _: pytest.fail("proven again"))
    again = load_policies(names, student=models["student"], teacher=models["teacher"])
    assert {name: entry.proof for name, entry in again.items()} == {name: item.proof for name, item in policies.items()}
    file = next((tmp_path / "proofs").glob("*.json"))
    file.write_text(file.read_text()[:20])  # a proof that was cut is made anew
    monkeypatch.undo()
    assert prove_once(load_policies((), student=models["student"])["student"]).off == {}


def test_resume_keeps_shortcuts_of_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Position embeddings of zero need no positions under padding; after a step of training they do."""
    folder = save_text_model(tmp_path / "student", "gpt2", ABSOLUTE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.transformer.wpe.weight)
    model.save_pretrained(folder)
    teacher = save_text_model(tmp_path / "teacher", "gpt2", ABSOLUTE, seed=1)
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"question": "{"why " * n}{n}?", "answer": "{n}"}}\n' for n in range(8)))
    config = build_config(
        {
            "name": "whole",
            "output_dir": str(tmp_path / "runs"),
            "models": {"student": str(folder), "teacher": str(teacher)},
            "data": {"train": str(questions)},
            "method": {"name": "opd"},
            "sampling": {"num_generations": 2, "max_completion_length": 6},
            "training": {"steps": 2, "batch_size": 2, "learning_rate": 0.1, "save_every": 1, "save_total_limit": 0},
            "trace": {"probes": 0},
        }
    )
    train(config)
    whole = RunFolder.open(config.run_dir)
    start = whole.status["proofs"]["student"]["shortcuts"]
    student = list_checkpoints(config.run_dir)[0].student
    assert not start["positions"] and load_policy(student, "student").prove().shortcuts.positions
    losses = [line["loss"] for line in whole.metrics("train")]
    shutil.rmtree(list_checkpoints(config.run_dir)[-1].path)
    with caplog.at_level(logging.WARNING, "workbench"):
        train(config, resume=True)
    assert [line["loss"] for line in whole.metrics("train")] == losses
    assert whole.status["proofs"]["student"]["shortcuts"] == start
    assert "student: its present weights would be scored with positions on" in caplog.text
