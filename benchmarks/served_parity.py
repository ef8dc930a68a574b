"""Log-probs of a served teacher against those of the same model by transformers in this process.

    workbench teacher MODEL --engine vllm --dtype float32
    python -m benchmarks served_parity MODEL [--address http://127.0.0.1:8000]

Answers of random tokens to prompts with no, one and two pictures and with earlier turns, two to each prompt; largest
differences over all their tokens. A text model gets the prompts without pictures. Both sides must have the same
packages: torchvision and Pillow resize pictures to other numbers.
"""

import argparse
import random

import torch
from PIL import Image

from workbench.policies.loading import load_policy
from workbench.policies.serving.served import ServedPolicy
from workbench.types import Prompt, Turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    args = parser.parse_args()
    served = load_policy(args.address, "teacher", device="cpu", max_pixels=None)
    assert isinstance(served, ServedPolicy)
    local = load_policy(args.model, "teacher", dtype=served.info["dtype"], max_pixels=None)
    prompts = [prompt for prompt in _prompts(local.processor is local.tokenizer) for _ in range(2)]
    numbers = random.Random(0)
    ordinary = [token for token in range(local.vocabulary) if not local.is_special(token)]
    answers = [tuple(numbers.choices(ordinary, k=numbers.randrange(1, 14))) for _ in prompts]
    outputs = [policy.forward(prompts, answers) for policy in (served, local)]
    hidden = [output.hidden.float() for output in outputs]
    index = torch.arange(len(hidden[1]))
    theirs, ours = (output.logits(index).log_softmax(-1) for output in outputs)
    written = torch.tensor([token for ids in answers for token in ids]).unsqueeze(-1)
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    facts = " ".join(served.info[name] for name in ("class", "engine", "dtype"))
    print(f"{facts}, {len(index)} tokens, largest differences (nats)")
    print(f"hidden states {_largest(hidden[0] - hidden[1])} of {float(hidden[1].abs().max()):.1f}")
    print(f"written token {_largest((theirs - ours).gather(-1, written))}, any token {_largest(theirs - ours)}")
    print(f"KL {_largest(kl)}, on average {float(kl.mean()):.1e}")


def _prompts(is_text: bool) -> list[Prompt]:
    texts = [Prompt((), "what is red?", key="none")]
    if is_text:
        return [*texts, Prompt((), "why?", (Turn("user", "and this?"), Turn("assistant", "red")), key="turns")]
    history = (Turn("user", "and this?", (_picture(4),)), Turn("assistant", "red"))
    return [
        *texts,
        Prompt((_picture(1),), "what is this?", key="one"),
        Prompt((_picture(2), _picture(3, (30, 60))), "which is larger?", key="two"),
        Prompt((_picture(5, (300, 200)),), "what is left of it?", key="large"),
        Prompt((), "which of the two?", history, key="turns"),
    ]


def _picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    small = torch.rand(size[1] // 8, size[0] // 8, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((255 * small).byte().numpy()).resize(size)


def _largest(values: torch.Tensor) -> str:
    return f"{float(values.abs().max()):.1e}"


if __name__ == "__main__":
    main()
