"""Time and memory of the parts of a step with Qwen3-VL at random weights, compared with the cost of its arithmetic.

    python -m benchmarks gpu [--only steps|attention|sampling|losses|lengths] [--prompts 8] [--generations 4]
                             [--tokens 128] [--repeats 5] [--keep FOLDER]

On a CUDA device models have the shapes of the 2B student and the 8B teacher, in bfloat16; otherwise small shapes, in
float32, with a note in the first line. Tokenizer and images are dummies with the right number of tokens.

steps      opd, and dopd with boxes and with the crop: tokens per second, time of each part, peak memory, and share of
           the floor in the time: 2 operations per weight and token in forward and 4 in backward (prompts once), at this
           device's speed of large matrix products of the same type. scores: heads and scalars of the views without
           gradient; loss: divergences with the heads of learner and targets, including gradients
attention  a step of opd and the first step (including compilation), with the family's own attention (eager), PyTorch's
           (sdpa), and sdpa with compiled RMSNorms and MLPs
sampling   time of sampling by the student itself and, if installed, by vllm, including the transfer of weights
losses     peak memory and time of the chunked losses, and of Liger's if installed, forward and backward, V = 151,936,
           for 1,024 to 16,384 positions
lengths    time per position of scoring and training on one answer of 64 to 2,048 tokens

--keep leaves the models, for `python -m benchmarks opd --student FOLDER/student --teacher FOLDER/teacher` against TRL.
"""

import argparse
import dataclasses
import gc
import importlib.util
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

import workbench.distill.scoring
import workbench.distill.step
from benchmarks import losses
from benchmarks.steps import Steps
from benchmarks.timing import machine
from workbench.config.schema import build_config
from workbench.data.contexts import build_prompt
from workbench.data.examples import load_examples
from workbench.distill.method import Method
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.policies import SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.policies.processors import PartSettings, images_only
from workbench.policies.vllm import Engine, VllmEngine
from workbench.runs.folder import RunFolder
from workbench.training.loop import Trainer
from workbench.types import Rollout

VOCABULARY = 151_936
TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} <|im_end|> {% endfor %}<|im_start|> assistant "
)
VARIANTS = {
    "opd": {"name": "opd"},
    "dopd with boxes": {"name": "dopd", "privilege": "boxes"},
    "dopd with crop": {"name": "dopd", "privilege": "crop"},
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of a model: width, inner width, layers, query and key heads, head width; and of its vision tower."""

    text: tuple[int, int, int, int, int, int]
    vision: tuple[int, int, int, int]
    deepstack: tuple[int, ...]


LARGE = {
    "student": Shape((2048, 6144, 28, 16, 8, 128), (1024, 4096, 24, 16), (5, 11, 17)),  # 2B
    "teacher": Shape((4096, 12288, 36, 32, 8, 128), (1152, 4304, 27, 16), (8, 16, 24)),  # 8B
}
SMALL = {
    "student": Shape((128, 384, 4, 4, 2, 32), (64, 256, 2, 4), (0,)),
    "teacher": Shape((256, 768, 6, 8, 2, 32), (96, 384, 3, 4), (0, 1)),
}


def main() -> None:
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        print(f"{torch.cuda.get_device_name()}, bfloat16, Qwen3-VL 2B and 8B shapes; torch {torch.__version__}")
    else:
        print(
            f"NO CUDA DEVICE: small shapes of the same classes, float32, processor time ({machine()}). No number below "
            "is a GPU's."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary)
        if args.only != "losses":
            for role, shape in (LARGE if device == "cuda" else SMALL).items():
                save(folder / role, shape, device)
        if args.only in (None, "steps"):
            measure_steps(args, folder, device)
        if args.only in (None, "attention"):
            measure_attention(args, folder, device)
        if args.only in (None, "sampling"):
            measure_sampling(args, folder, device)
        if args.only in (None, "lengths"):
            measure_lengths(args, folder, device)
    if args.only in (None, "losses"):
        measure_losses(args, device)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("steps", "attention", "sampling", "losses", "lengths"))
    parser.add_argument("--prompts", type=int, default=8, help="per step")
    parser.add_argument("--generations", type=int, default=4, help="per prompt")
    parser.add_argument("--tokens", type=int, default=128, help="per answer, exactly")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--micro-batch", type=int, default=8, help="answers per forward pass")
    parser.add_argument("--compile", help="backend of torch.compile")
    parser.add_argument("--attention", help="eager, sdpa, flash_attention_2")
    parser.add_argument("--width", type=int, help="of the hidden states of `losses`; default 2048, without a GPU 256")
    parser.add_argument("--divergence", choices=tuple(losses.CASES), help="of `losses`; default: two of them")
    parser.add_argument("--keep", help="folder to make the models in, and to leave them")
    return parser.parse_args()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with as many dummy words as Qwen3's vocabulary."""
    words = {word: idx for idx, word in enumerate(["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *TOKENS.values()])}
    words |= {f"w{idx}": idx for idx in range(len(words), VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        padding_side="left",
        extra_special_tokens=TOKENS,
    )


def save(folder: Path, shape: Shape, device: str) -> None:
    """Make a model of random weights with a processor."""
    tokenizer = build_tokenizer()
    pixels = (448 if device == "cuda" else 96) ** 2
    sizes = {"size": {"shortest_edge": pixels, "longest_edge": 4 * pixels}, "patch_size": 16}
    processor = images_only(Qwen3VLProcessor)(
        Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        PartSettings({"video_processor_type": "Qwen3VLVideoProcessor"} | sizes),
        chat_template=TEMPLATE,
    )
    width, head = shape.text[0], shape.text[-1]
    rope = {"rope_type": "default", "mrope_section": [head // 4, head // 8, head // 8], "rope_theta": 5_000_000.0}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text: dict[str, Any] = dict(zip(names, shape.text[:5], strict=True)) | {"head_dim": head, "vocab_size": VOCABULARY}
    text |= {"rope_parameters": rope | {"mrope_interleaved": True}, "max_position_embeddings": 32_768}
    vision: dict[str, Any] = dict(
        zip(("hidden_size", "intermediate_size", "depth", "num_heads"), shape.vision, strict=True)
    )
    vision |= {"out_hidden_size": width, "patch_size": 16, "deepstack_visual_indexes": list(shape.deepstack)}
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(config).to(torch.bfloat16 if device == "cuda" else torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


class Parts:
    """Seconds of the parts of a step, synchronized with the device. On the CPU: processor time."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device != "cuda":
            return time.process_time()  # others on the machine hardly disturb it
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str | Callable[[], str], work: Callable) -> Callable:
        def inside(*arguments: object, **options: object) -> object:
            part, start = name if isinstance(name, str) else name(), self.now()
            try:
                return work(*arguments, **options)
            finally:
                self.seconds[part] += self.now() - start

        return inside


def measure_steps(args: argparse.Namespace, folder: Path, device: str) -> None:
    peak = speed(device)
    print(
        f"\nsteps: {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens; large matrices at "
        f"{peak / 1e12:.2f} TFLOP/s"
    )
    names = ("sampling", "teacher", "self", "scores", "learner", "loss", "trace")
    print(
        f"{'':18}{'tokens/s':>10}{'floor':>8}{'peak GiB':>10}{'step ms':>10}"
        + "".join(f"{name:>10}" for name in (*names, "rest"))
    )
    with tempfile.TemporaryDirectory() as runs:
        for name, method in VARIANTS.items():
            print(f"{name:18}{one_variant(args, folder, Path(runs), name, method, device, peak, names)}", flush=True)
            clear(device)


def measure_attention(args: argparse.Namespace, folder: Path, device: str) -> None:
    """Measure the first and later steps with each attention implementation, and compiled."""
    print(f"\nattention: opd, {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens")
    print(f"{'':18}{'first step ms':>15}{'step ms':>10}")
    with tempfile.TemporaryDirectory() as runs:
        for name, variant in {
            "eager": ("eager", None),
            "sdpa": ("sdpa", None),
            "sdpa, compiled": ("sdpa", "inductor"),
        }.items():
            variant_args = argparse.Namespace(**vars(args) | {"attention": variant[0], "compile": variant[1]})
            trainer, parts = (
                make(variant_args, folder, Path(runs) / str(len(name)), VARIANTS["opd"], device),
                Parts(device),
            )
            student = trainer.learners[0].student
            student.placeholders = [*student.placeholders, *student.stop_ids]  # never drawn
            steps, walls = Steps(trainer), []
            with trainer.trace_writer:
                for _ in range(args.repeats + 1):
                    start = parts.now()
                    steps()
                    walls.append(1000 * (parts.now() - start))
            print(f"{name:18}{walls[0]:15,.0f}{statistics.median(walls[1:]):10,.0f}", flush=True)
            clear(device)


def measure_sampling(args: argparse.Namespace, folder: Path, device: str) -> None:
    """Measure sampling in wall time, since vLLM has threads in other processes."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    student = load_policy(folder / "student", "student", dtype=dtype, device=device)
    student.placeholders = [*student.placeholders, *student.stop_ids]  # never drawn
    prompts = [build_prompt(example, "plain") for example in load_examples(f"scenes:train?count={args.prompts}")]
    engines: dict[str, Engine | None] = {"the student itself": None}
    if importlib.util.find_spec("vllm") is not None:
        engines["vllm"] = VllmEngine(str(folder / "student"), dtype=dtype, memory=0.3, trust_remote_code=False)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(args.repeats + 1):
        seeds = [
            [(turn * args.prompts + row) * 1000 + n for n in range(args.generations)] for row in range(len(prompts))
        ]
        for name, student.engine in engines.items():
            start = time.perf_counter()
            written = student.sample(prompts, seeds, SamplingOptions(args.tokens))
            seconds[name].append(time.perf_counter() - start)
            if {len(rollout.ids) for rollouts in written for rollout in rollouts} != {args.tokens}:
                raise RuntimeError(f"{name} wrote answers of another length, so times say nothing")
    print(f"\nsampling: {args.prompts} prompts x {args.generations} answers x {args.tokens} tokens, wall clock")
    print(f"{'':22}{'first s':>10}{'s':>8}{'tokens/s':>10}")
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        tokens = args.prompts * args.generations * args.tokens
        print(f"{name:22}{times[0]:10.1f}{median:8.1f}{tokens / median:10.0f}", flush=True)
    if len(engines) == 1:
        print("vllm is not installed: not measured")


def clear(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def one_variant(args, folder, runs, name, method, device, peak, names) -> str:
    trainer, parts = make(args, folder, runs / name.replace(" ", "-"), method, device), Parts(device)
    policies = trainer.learners[0].policies
    student, teacher = policies["student"], policies["teacher"]
    student.placeholders = [*student.placeholders, *student.stop_ids]  # never drawn: all answers have the same length
    student.sample = parts.timed("sampling", student.sample)
    student.forward = parts.timed(lambda: "learner" if torch.is_grad_enabled() else "self", student.forward)
    teacher.forward = parts.timed("teacher", teacher.forward)
    supervise, score, likely = (
        workbench.distill.step.compute_losses,
        workbench.distill.scoring.score,
        workbench.distill.step.top_k_tokens,
    )
    workbench.distill.step.compute_losses = parts.timed("loss", supervise)
    workbench.distill.scoring.score = parts.timed("scores", score)
    workbench.distill.step.top_k_tokens = parts.timed("trace", likely)
    trainer.accelerator.backward = parts.timed("learner", trainer.accelerator.backward)
    learner: Any = trainer.learners[0]  # whose methods are timed
    learner.clip_gradients = parts.timed("learner", learner.clip_gradients)
    learner.update = parts.timed("learner", learner.update)
    writer: Any = trainer.trace_writer
    writer.write = parts.timed("trace", writer.write)
    try:
        steps = Steps(trainer)
        with trainer.trace_writer:
            steps()
            parts.seconds.clear()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                start = parts.now()
                for _ in range(args.repeats):
                    steps()
                step_s, memory = (parts.now() - start) / args.repeats, torch.cuda.max_memory_allocated()
            else:
                start = parts.now()
                with losses.Peak() as high:
                    for _ in range(args.repeats):
                        steps()
                step_s, memory = (parts.now() - start) / args.repeats, high.bytes
    finally:
        workbench.distill.step.compute_losses, workbench.distill.scoring.score, workbench.distill.step.top_k_tokens = (
            supervise,
            score,
            likely,
        )
    tokens = args.prompts * args.generations * args.tokens
    part_seconds = {part: parts.seconds[part] / args.repeats for part in names}
    part_seconds["rest"] = step_s - sum(part_seconds.values())
    share = floor(trainer, args) / peak / step_s
    return f"{tokens / step_s:10,.0f}{share:8.1%}{memory / 2**30:10.2f}{1000 * step_s:10.0f}" + "".join(
        f"{1000 * value:10.0f}" for value in part_seconds.values()
    )


def make(args: argparse.Namespace, folder: Path, run_dir: Path, method: dict, device: str) -> Trainer:
    models = {"student": str(folder / "student"), "teacher": str(folder / "teacher")}
    models |= {
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "compile": args.compile,
        "attn_implementation": args.attention,
    }
    steps = args.repeats + 1
    config = build_config(
        {
            "name": run_dir.name,
            "output_dir": str(run_dir.parent),
            "models": models,
            "data": {"train": f"scenes:train?count={args.prompts * steps}"},
            "method": method,
            "sampling": {"num_generations": args.generations, "max_completion_length": args.tokens},
            "training": {"steps": 1000, "batch_size": args.prompts, "micro_batch_size": args.micro_batch},
            "trace": {"probes": 0},
        }
    )
    run = RunFolder.create(config.run_dir, config.to_yaml(), seed=config.seed, method=method["name"])
    return Trainer(config, run)


def floor(trainer: Trainer, args: argparse.Namespace) -> float:
    """Count the operations of the floor: each view's weights once per token, the learner's three times."""
    method: Method = trainer.method
    examples = [trainer.examples[idx] for idx in trainer.order.batch(1, args.prompts)]
    policies, written = trainer.learners[0].policies, args.prompts * args.generations * args.tokens

    def forward(policy: AutoregressivePolicy, context: str) -> float:
        encoded = [policy.encoder.encode(build_prompt(example, context)) for example in examples]
        patches = sum(encoding["pixel_values"].shape[0] for encoding in encoded)
        prompt = sum(encoding["input_ids"].shape[1] for encoding in encoded)
        size = sizes(policy)
        return 2 * (size["text"] * (prompt + written) + size["head"] * written + size["vision"] * patches)

    learner_view = method.views[method.learner_view]
    total = forward(policies["student"], learner_view.context)  # sampling
    for view in method.views.values():
        total += (3 if view.learns else 1) * forward(policies[view.policy], view.context)
    return total


def sizes(policy: AutoregressivePolicy) -> dict[str, int]:
    """Count the weights that multiply every token."""
    model = policy.model.model
    head = policy.model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight.numel()
    return {
        "text": sum(weight.numel() for weight in model.language_model.parameters()) - embedding,
        "head": head,
        "vision": sum(weight.numel() for weight in model.visual.parameters()),
    }


def speed(device: str) -> float:
    """Measure operations per second of a large matrix product."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    parts = Parts(device)
    seconds = []
    for _ in range(10):
        start = parts.now()
        left @ right
        seconds.append(2 * side**3 / (parts.now() - start))
    return max(seconds)


def measure_lengths(args: argparse.Namespace, folder: Path, device: str) -> None:
    """Measure scoring and training on one answer, without sampling."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    student = load_policy(folder / "student", "student", dtype=dtype, device=device)
    teacher = load_policy(folder / "teacher", "teacher", dtype=dtype, device=device)
    student.model.requires_grad_(True)
    config = build_config(
        {
            "name": "x",
            "models": {"student": "s", "teacher": "t"},
            "data": {"train": "d"},
            "method": VARIANTS["dopd with boxes"],
        }
    )
    method, parts = config.load_method(), Parts(device)
    example = load_examples("scenes:train?count=1")[0]
    print(
        "\nlengths: dopd with boxes, one answer, read by teacher and self, learned\n  tokens   ms  microseconds per "
        "position"
    )
    for length in (64, 128, 256, 512, 1024, 2048):
        ids = tuple(torch.randint(100, VOCABULARY, (length,), generator=torch.Generator().manual_seed(0)).tolist())
        batch = Batch((Rollout(example, 0, ids, "", True, (-1.0,) * length, None),))

        def work(batch: Batch = batch) -> None:
            scored_batch = score_batch(method, {"student": student, "teacher": teacher}, batch)
            compute_step(
                method, {"student": student, "teacher": teacher}, scored_batch, seed=0, backward=torch.Tensor.backward
            )
            student.model.zero_grad(set_to_none=True)

        work()
        seconds = []
        for _ in range(args.repeats):
            start = parts.now()
            work()
            seconds.append(parts.now() - start)
        best = min(seconds)
        print(f"{length:8}{1000 * best:8.0f}{1e6 * best / length:12.0f}", flush=True)


def measure_losses(args: argparse.Namespace, device: str) -> None:
    """Measure reverse KL and Jensen-Shannon, ours and Liger's; each CPU measurement in a separate process."""
    width = args.width or (2048 if device == "cuda" else 256)
    head = VOCABULARY * width * (2 if device == "cuda" else 4) / 2**30
    print(
        f"\nlosses: V = {VOCABULARY:,}, width {width}; GiB above hidden states and weights, the head's gradient "
        f"included ({head:.2f})"
    )
    variants = [losses.CHUNKED]
    for variant in (losses.LIGER, losses.TRITON):
        if reason := losses.why_not(variant, "jensen_shannon"):
            print(f"  {variant}: skipped, {reason}")
        else:
            variants.append(variant)
    print(f"  {'divergence':18}{'':24}{'positions':>10}{'GiB':>8}{'ms':>8}  microseconds per position")
    for name in [args.divergence] if args.divergence else ("reverse_kl", "jensen_shannon"):
        for variant in [
            candidate
            for candidate in variants
            if candidate == losses.CHUNKED or losses.why_not(candidate, name) is None
        ]:
            for positions in (1024, 2048, 4096, 8192, 16_384):
                if device == "cuda":
                    seconds, memory = losses_on_cuda(variant, name, positions, width)
                else:
                    wanted = argparse.Namespace(positions=positions, vocabulary=VOCABULARY, width=width)
                    result = losses.in_process(wanted, name, variant)
                    seconds, memory = result["turn"][1], result["bytes"]  # processor time: others hardly disturb it
                print(
                    "  "
                    f"{name:18}{variant:24}{positions:10}{memory / 2**30:8.2f}{1000 * seconds:8.0f}"
                    f"{1e6 * seconds / positions:10.0f}",
                    flush=True,
                )


def losses_on_cuda(variant: str, name: str, positions: int, width: int) -> tuple[float, int]:
    default, parts = torch.get_default_dtype(), Parts("cuda")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            losses.prepared(variant, name, 64, VOCABULARY, width)()
            work = losses.prepared(variant, name, positions, VOCABULARY, width)
            torch.cuda.reset_peak_memory_stats()
            before, start = torch.cuda.memory_allocated(), parts.now()
            work()
            return parts.now() - start, torch.cuda.max_memory_allocated() - before
    finally:
        torch.set_default_dtype(default)


if __name__ == "__main__":
    main()
