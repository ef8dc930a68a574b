"""Teaches the model of data/smolvlm.py to answer questions without an image as SmolLM2 does, which it forgot in part.

    python data/smolvlm_recall.py build/smollm2 build/smolvlm-training build/smolvlm-recalled --parts data/smolvlm

Each step's loss is the mean KL per token from SmolLM2 to the model on SmolLM2's own greedy answers, and the
cross-entropy of answers about scenes as in data/smolvlm.py. SmolLM2 is the model itself without its LoRA. The questions
are those that data/smollm2.py trains on; its held-out file shares no word, sum or country with them.
"""

import argparse
import random
import time
from pathlib import Path

import smollm2
import smolvlm
import torch
from peft.helpers import disable_input_dtype_casting
from smolvlm_packing import collate, pack
from torch import Tensor
from transformers import Idefics3ForConditionalGeneration

KINDS = {"rephrase": 60, "add": 40, "repeat": 40, "capital": 16}  # questions of each kind
NOUNS = ("triangle", "circle", "doctor", "river", "computer", "car", "planet", "tree", "book", "bridge", "bird", "song")
STARTS = ("What is a {}?", "Write a sentence about a {}.", "Describe a {}.")
ANSWER = 28  # tokens of an answer at most
TEXTS, SCENES = 8, 4  # of one step
RATE = 3e-4  # of the LoRA, falling to zero; connector and tower stay as they are


def ask_texts() -> list[str]:
    rows = smollm2.questions()["train"]
    kinds = {kind: [row["question"] for row in rows if row["domain"] == kind] for kind in KINDS}
    texts = [question for kind, count in KINDS.items() for question in kinds[kind][:count]]
    texts += [start.format(noun) for noun in NOUNS for start in STARTS]
    random.Random(0).shuffle(texts)
    return texts


@torch.no_grad()
def answer(model: Idefics3ForConditionalGeneration, tokenizer, texts: list[str]) -> list[tuple[Tensor, int]]:
    """Ids of prompt and SmolLM2's greedy answer, and the prompt's length, of each question."""
    text, answered = model.model.text_model, []
    end = tokenizer.eos_token_id
    for start in range(0, len(texts), 24):
        chats = [[{"role": "user", "content": question}] for question in texts[start : start + 24]]
        encoded = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        prompts, mask = encoded["input_ids"], encoded["attention_mask"]
        with text.disable_adapter():
            whole = model.generate(input_ids=prompts, attention_mask=mask, max_new_tokens=ANSWER, do_sample=False)
        for ids, kept in zip(whole, mask, strict=True):
            new = ids[len(kept) :].tolist()
            new = new[: new.index(end) + 1] if end in new else new
            prompt = ids[: len(kept)][kept.bool()]
            answered.append((torch.cat((prompt, torch.tensor(new))), len(prompt)))
    return answered


def kl_of(model: Idefics3ForConditionalGeneration, answered: list[tuple[Tensor, int]]) -> Tensor:
    """Mean KL per token from SmolLM2 to the model on the answers, in nats."""
    longest, text = max(len(ids) for ids, _ in answered), model.model.text_model
    ids, wanted = torch.zeros(len(answered), longest, dtype=torch.long), torch.zeros(len(answered), longest).bool()
    for row, (tokens, prompt) in enumerate(answered):
        ids[row, : len(tokens)] = tokens
        wanted[row, prompt - 1 : len(tokens) - 1] = True
    with torch.autocast("cpu", torch.bfloat16), disable_input_dtype_casting(text):
        with torch.no_grad(), text.disable_adapter():
            base = model.lm_head(text(input_ids=ids, use_cache=False).last_hidden_state[wanted]).float().log_softmax(-1)
        learned = model.lm_head(text(input_ids=ids, use_cache=False).last_hidden_state[wanted]).float().log_softmax(-1)
    return (base.exp() * (base - learned)).sum(-1).mean()


def recall(base: Path, folder: Path, target: Path, steps: int, seed: int) -> None:
    """Go on from the state of a folder for some steps and write the state to another."""
    model, encoder, texts = smolvlm.build(base)
    weights = {name: item for part in smolvlm.trainable(model).values() for name, item in part.items()}
    saved = torch.load(folder / "state.pt")
    for name, parameter in weights.items():
        parameter.data.copy_(saved["weights"][name])
        parameter.requires_grad_("lora" in name)
    tokenizer = encoder._tokenizer
    answered = answer(model, tokenizer, ask_texts())
    print(f"{len(answered)} answers of SmolLM2", flush=True)
    lora = [parameter for parameter in weights.values() if parameter.requires_grad]
    optimizer, started = torch.optim.AdamW(lora, betas=(0.9, 0.98), weight_decay=0.0), time.monotonic()
    image_end, draw = tokenizer.convert_tokens_to_ids("<fake_token_around_image>"), random.Random(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / 5, 1 - step / steps)
        first = (saved["step"] + step) * SCENES + 10**6
        scenes = [smolvlm.make_document(seed, saved["step"], first + row, texts) for row in range(SCENES)]
        rows = pack(scenes, encoder, image_end=image_end, length=smolvlm.ROW)
        kl = kl_of(model, draw.sample(answered, TEXTS))
        kl.backward()
        loss = smolvlm.loss_of(model, collate(rows, encoder))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = (time.monotonic() - started) / (step + 1)
        print(f"step {step + 1} kl {kl.item():.3f} loss {loss.item():.4f} s/step {seconds:.1f}", flush=True)
    target.mkdir(parents=True, exist_ok=True)
    torch.save({"step": saved["step"] + steps, "weights": weights}, target / "state.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("folder", type=Path, help="of the state of data/smolvlm.py")
    parser.add_argument("target", type=Path, help="folder of the state that is written")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=Path, help="write the parts here")
    options = parser.parse_args()
    recall(options.base, options.folder, options.target, options.steps, options.seed)
    if options.parts:
        record = {"seed": options.seed, "recall_steps": options.steps}
        smolvlm.export(options.target / "state.pt", options.parts, record)


if __name__ == "__main__":
    main()
