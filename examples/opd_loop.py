"""On-policy distillation of a vision-language model, from top to bottom, in plain torch and transformers.

    python examples/opd_loop.py        # seconds on a CPU; --student, --teacher and --data for your own

The student answers, the teacher scores these answers token by token, and the student is pulled toward the teacher at
every token of them: reverse KL, KL(student || teacher) (arXiv 2306.13649).

Prompts, random numbers, loss and averaging are the workbench's, so that this prints the losses of

    workbench train configs/opd.yaml data.train=data/samples/samples.jsonl data.eval=null training.schedule=constant

which adds privileged evidence, routing, logits in chunks, a trace of every token, evaluation, checkpoints.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor

SEED = 0
PROMPTS_PER_STEP = 8
ANSWERS_PER_PROMPT = 4
MAX_ANSWER_TOKENS = 32
LEARNING_RATE = 1e-4  # large models need less, such as 1e-6
MAX_GRAD_NORM = 1.0


def main(arguments: list[str] | None = None) -> None:
    """Distill for a few steps and print the loss of each, in nats per token."""
    parser = argparse.ArgumentParser(description="On-policy distillation in plain torch and transformers.")
    parser.add_argument("--student", default="data/models/student", help="a model folder, or a name on the hub")
    parser.add_argument("--teacher", default="data/models/teacher", help="likewise; it shares the student's vocabulary")
    parser.add_argument("--data", type=Path, default="data/samples/samples.jsonl", help="a row each: question, images")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    processor = AutoProcessor.from_pretrained(options.student, padding_side="left")
    student = AutoModelForImageTextToText.from_pretrained(options.student, dtype="float32").to(device).eval()
    teacher = AutoModelForImageTextToText.from_pretrained(options.teacher, dtype="auto").to(device).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    for step in range(1, options.steps + 1):
        # 1. Prompts: each stands in the batch once for every answer to it.
        prompts = [build_prompt(row, options.data.parent) for row in rows_of_step(rows, step)]
        inputs = encode([prompt for prompt in prompts for _ in range(ANSWERS_PER_PROMPT)], processor).to(device)

        # 2. Sample: the student answers with the weights it has now. This is what makes it on-policy.
        answers = sample(student, inputs, step)
        mask = answer_mask(answers, student.generation_config.eos_token_id)

        # 3. Score: both models score the same token ids, the student with gradient; eval() turned dropout off.
        student_logprobs = score(student, inputs, answers, mask)
        with torch.no_grad():
            teacher_logprobs = score(teacher, inputs, answers, mask)

        # 4. Loss: over the whole vocabulary at every token; the mean of each answer, then the mean of the answers.
        reverse_kl = (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)
        loss = ((reverse_kl * mask).sum(-1) / mask.sum(-1)).mean()

        # 5. Step.
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

        text = processor.decode(answers[0][mask[0]], skip_special_tokens=True)
        print(f"step {step}  loss {loss:.6f}  grad_norm {grad_norm:.4f}  answer: {text}")


def rows_of_step(rows: list[dict], step: int) -> list[dict]:
    """The next rows of an endless sequence of epochs, each in an order of its own."""
    chosen = []
    for position in range((step - 1) * PROMPTS_PER_STEP, step * PROMPTS_PER_STEP):
        epoch, offset = divmod(position, len(rows))
        order = torch.randperm(len(rows), generator=seeded("order", SEED, epoch)).tolist()
        chosen.append(rows[order[offset]])
    return chosen


def build_prompt(row: dict, folder: Path) -> list[dict]:
    """A row as a conversation: earlier turns if there are any, then its images and its question."""
    earlier = [turn | {"content": [{"type": "text", "text": turn["text"]}]} for turn in row.get("history", [])]
    images = [{"type": "image", "image": Image.open(folder / name).convert("RGB")} for name in row["images"]]
    return [*earlier, {"role": "user", "content": [*images, {"type": "text", "text": row["question"]}]}]


def encode(prompts: list[list[dict]], processor):
    """Conversations as one batch, padded on the left: every answer begins in the same column."""
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
    return processor.apply_chat_template(prompts, add_generation_prompt=True, **options)


def sample(student, inputs, step: int) -> torch.Tensor:
    """(answers, tokens): ids sampled at temperature 1, seeded by prompt and answer; padding follows an end token."""
    num_answers, prompt_length = inputs["input_ids"].shape
    streams = [seeded("sample", SEED, step, *divmod(row, ANSWERS_PER_PROMPT)) for row in range(num_answers)]
    uniform = torch.stack([torch.rand(MAX_ANSWER_TOKENS, generator=stream, dtype=torch.float64) for stream in streams])
    placeholders = [getattr(student.config, name, None) for name in ("image_token_id", "video_token_id")]
    return student.generate(
        **inputs,
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,  # InverseCdf draws: it leaves one token, the most likely
        repetition_penalty=1.0,  # whatever the model's own generation_config says
        suppress_tokens=[token for token in placeholders if token is not None],
        logits_processor=[InverseCdf(uniform.to(student.device), prompt_length)],
    )[:, prompt_length:]


class InverseCdf(LogitsProcessor):
    """Draws each answer's next token with its own random number, so that no answer depends on its neighbors."""

    def __init__(self, uniform: torch.Tensor, prompt_length: int) -> None:
        self.uniform, self.prompt_length = uniform, prompt_length  # (answers, tokens), from 0 to 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative = scores.double().softmax(-1).cumsum(-1)
        target = self.uniform[:, input_ids.shape[1] - self.prompt_length, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, target, right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def answer_mask(answers: torch.Tensor, end_ids: int | list[int]) -> torch.Tensor:
    """(answers, tokens): True up to an answer's first end token, which counts, too: when to stop is learned as well."""
    is_end = torch.isin(answers, torch.tensor(end_ids, device=answers.device))
    return is_end.cumsum(-1) - is_end.long() == 0


def score(model, inputs, answers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(answers, tokens, vocabulary): log-probs of the whole vocabulary at every token of the answers."""
    appended = {"input_ids": answers, "attention_mask": mask.long()}
    appended |= {name: torch.zeros_like(answers) for name in inputs if name.endswith("token_type_ids")}  # 0: text
    inputs = {**inputs, **{name: torch.cat((inputs[name], ids), dim=-1) for name, ids in appended.items()}}
    logits = model(**inputs, logits_to_keep=mask.shape[1] + 1).logits
    return logits[:, :-1].float().log_softmax(-1)  # the logits of a column predict the token of the next column


def seeded(*key: object) -> torch.Generator:
    """Random numbers that depend on their key alone: a run can stop and continue without saving their state."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits


if __name__ == "__main__":
    main()
