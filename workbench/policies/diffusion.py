"""Masked diffusion language models as policies: a bidirectional masked LM that fills a canvas of masks.

Model classes: any masked LM of the Auto classes whose logits are a linear head over its base model, optionally with a
transform between (ModernVBERT, which takes images; EuroBERT, with LLaDA's layers; ModernBERT; BERT). DiffusionGemma of
transformers is not supported: it denoises random tokens of one canvas, attends causally to finished ones, and has
neither masks nor later blocks.

1. A canvas of max_completion_length masks follows the prompt. Blocks of `block` positions are filled one after the
   other, each in `steps_per_block` steps: every mask of the block gets a sampled token, and the tokens of highest
   probability are committed (LLaDA, arXiv 2502.09992, low-confidence remasking).
2. The first end token closes the canvas: later positions become padding at the same step, and no earlier end token is
   sampled. So ids and steps of an answer determine the model's input at every step.
3. A position of an answer is (denoising step, committed token). It is scored in the canvas before its step, plus the
   future in its prompt. All states of an answer are rows of a batch; `STATES` rows are one forward pass.

The model must distinguish padding from the end token: one that fills the canvas with end tokens would commit the last
of them first. `block` and `steps_per_block` are the model's own (config.json, "denoising") unless the sampling options
of the run set them.
"""

import inspect
import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.errors import ConfigError, PolicyError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.encoding import distinct
from workbench.policies.proof import Proof
from workbench.policies.sampling import draw
from workbench.policies.view_output import ViewOutput
from workbench.types import DenoisingTrace, Prompt

STATES = 256  # canvases of one forward pass
BLOCK, STEPS_PER_BLOCK = 32, 16  # defaults: two tokens a step, as in d-OPSD's experiments
_TRANSFORMS = ("", "projection_head", "head", "cls.predictions.transform")  # between base model and head


class DiffusionPolicy(AutoregressivePolicy):
    """A masked LM with its processor; only sampling and scoring differ from a left-to-right model."""

    block: int
    steps_per_block: int

    def __init__(self, model: nn.Module, processor, name: str, **options) -> None:
        super().__init__(model, processor, name, **options)
        if self.tokenizer.mask_token_id is None or self.tokenizer.pad_token_id in (None, *self.stop_ids):
            raise PolicyError(
                f"{name}: expected a mask token, and a padding token other than the end token, for masked diffusion "
                f"(mask {self.tokenizer.mask_token!r}, padding {self.tokenizer.pad_token!r}, end "
                f"{self.tokenizer.eos_token!r}). Name them in the model's tokenizer_config.json."
            )
        self.mask_id, self.pad_id = self.tokenizer.mask_token_id, self.tokenizer.pad_token_id
        settings = getattr(model.config, "denoising", None) or {}
        self.canvas = int(settings.get("canvas", 4 * BLOCK))  # for answers that no policy sampled
        self.set_denoising_steps(
            int(settings.get("block", BLOCK)), int(settings.get("steps_per_block", STEPS_PER_BLOCK))
        )
        self._takes_features = "image_hidden_states" in inspect.signature(model.base_model.forward).parameters
        self._transform = self._find_transform()

    def prove(self) -> Proof:
        """Return an empty proof: left-to-right shortcuts do not apply, and __init__ checks the head."""
        off: dict[str, float | None] = {"packing": None} if self.shortcuts.packing else {}
        self.proof = self.proof or Proof(replace(self.shortcuts, packing=False), off)
        return self.proof

    def set_denoising_steps(self, block: int, steps_per_block: int, canvas: int | None = None) -> None:
        """Set the denoising schedule, also of models saved from this one; 0 = unchanged."""
        self.block, self.canvas = block or self.block, canvas or self.canvas
        self.steps_per_block = steps_per_block or self.steps_per_block
        if not 1 <= self.steps_per_block <= self.block:
            raise ConfigError(
                f"{self.name}: {self.steps_per_block} denoising steps for a block of {self.block} positions. Set "
                "sampling.steps_per_block from 1 to sampling.diffusion_block_size."
            )
        pace = {"block": self.block, "steps_per_block": self.steps_per_block, "canvas": self.canvas}
        self.model.config.denoising = pace

    @torch.no_grad()
    def _find_transform(self) -> str:
        """Find the transform between base model and head with three tokens. Raises PolicyError if none matches."""
        ids = torch.tensor([[self.mask_id, self.pad_id, *sorted(self.stop_ids)[:1]]], device=self.device)
        with self.evaluation():
            logits = self.model(input_ids=ids).logits[0].float()
            hidden = self.model.base_model(input_ids=ids).last_hidden_state[0]
            for name in _TRANSFORMS:
                try:
                    guess = self.head(self.model.get_submodule(name)(hidden) if name else hidden)
                except (AttributeError, RuntimeError, TypeError):
                    continue
                if guess.shape == logits.shape and torch.allclose(guess, logits, rtol=1e-2, atol=1e-2):
                    return name
        raise PolicyError(
            f"{self.name}: the logits of {type(self.model).__name__} are not its head over its base model, so they "
            "cannot be computed in chunks. Choose a ModernVBERT, EuroBERT, ModernBERT or BERT."
        )

    @torch.no_grad()
    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        """Sample one answer per seed of each prompt; it depends only on its prompt and seed."""
        rows = [row for row, prompt_seeds in enumerate(seeds) for _ in prompt_seeds]
        flat = [seed for prompt_seeds in seeds for seed in prompt_seeds]
        with self.evaluation():
            completions = iter(self._sample_rows(_Context(self, prompts, rows), flat, options))
            return [[next(completions) for _ in prompt_seeds] for prompt_seeds in seeds]

    def _sample_rows(self, context: "_Context", seeds: list[int], options: SamplingOptions) -> list[Completion]:
        count, length = len(seeds), options.max_completion_length
        blocks = math.ceil(length / self.block)
        canvas = torch.full((count, length), self.mask_id, device=self.device)
        steps, logprobs = torch.full((count, length), -1), torch.zeros(count, length)
        done = torch.zeros(count, dtype=torch.long)  # denoising steps of each answer
        shape = (blocks * self.steps_per_block, length)
        uniform = [torch.rand(shape, generator=_generator(seed), dtype=torch.float64) for seed in seeds]
        ends = torch.tensor(sorted(self.stop_ids), device=self.device)
        for start in range(0, length, self.block):
            for left in range(self.steps_per_block, 0, -1):
                masked = canvas == self.mask_id
                masked[:, :start] = masked[:, start + self.block :] = False
                active = masked.any(-1).nonzero().squeeze(-1)
                if not active.numel():
                    break
                logits = self._logits(context, active, canvas[active], masked[active])
                cells = masked[active].nonzero().cpu()  # (M, 2): index of the active answer, position
                mine = active[cells[:, 0]]
                tokens, sure, logprob = self._draw(
                    logits,
                    self._may_end(canvas, ends)[mine, cells[:, 1]],
                    torch.stack(
                        [
                            uniform[row][done[row], column]
                            for row, column in zip(mine.tolist(), cells[:, 1].tolist(), strict=True)
                        ]
                    ),
                    options,
                )
                for idx, row in enumerate(active.tolist()):
                    row_cells = (cells[:, 0] == idx).nonzero().squeeze(-1)
                    best = row_cells[
                        sure[row_cells].argsort(descending=True, stable=True)[: math.ceil(row_cells.numel() / left)]
                    ]
                    for at in best[cells[best, 1].argsort()].tolist():
                        column, token = int(cells[at, 1]), int(tokens[at])
                        canvas[row, column], steps[row, column], logprobs[row, column] = token, done[row], logprob[at]
                        if token in self.stop_ids:
                            canvas[row, column + 1 :] = self.pad_id
                            break
                    done[row] += 1
        return [
            self._completion(*answer)
            for answer in zip(canvas.tolist(), steps.tolist(), logprobs.tolist(), seeds, strict=True)
        ]

    def _may_end(self, canvas: Int[Tensor, "B C"], ends: Int[Tensor, " E"]) -> Bool[Tensor, "B C"]:
        """Mask of positions that may sample an end token: one per answer, and not before a committed token."""
        filled = canvas != self.mask_id
        later = filled.flip(-1).cumsum(-1).flip(-1) > 0
        return ~later & ~torch.isin(canvas, ends).any(-1, keepdim=True)

    def _draw(
        self,
        logits: Float[Tensor, "M V"],
        may_end: Bool[Tensor, " M"],
        uniform: Float[Tensor, " M"],
        options: SamplingOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample a token per mask; return tokens, probabilities (which decide the commits) and log-probs."""
        never = torch.tensor([self.mask_id, self.pad_id, *self.placeholders], device=logits.device)
        allowed = logits.index_fill(-1, never, -math.inf)
        for token in self.stop_ids:
            allowed[:, token] = allowed[:, token].masked_fill(~may_end, -math.inf)
        tokens = draw(allowed, uniform.to(logits.device), options)
        logprob = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        return tokens, logprob.exp().cpu(), logprob.cpu()

    def _completion(self, ids: list[int], steps: list[int], logprobs: list[float], seed: int) -> Completion:
        length = next((at for at, token in enumerate(ids, start=1) if token in self.stop_ids), len(ids))
        finished = bool(ids) and ids[length - 1] in self.stop_ids
        denoising = DenoisingTrace(tuple(steps[:length]), self.block, len(ids), seed)
        return Completion(tuple(ids[:length]), tuple(logprobs[:length]), finished, denoising)

    def denoising_schedule(self, ids: tuple[int, ...]) -> DenoisingTrace:
        """Schedule of a given answer: from left to right, at the policy's tokens per step."""
        if len(ids) > self.canvas:
            raise PolicyError(
                f"an answer of {len(ids)} tokens, with its end token, exceeds the canvas of {self.canvas}. Raise "
                "sampling.max_completion_length."
            )
        steps, step = [], 0
        for start in range(0, len(ids), self.block):
            todo = min(self.block, self.canvas - start)
            for left in range(self.steps_per_block, 0, -1):
                count = math.ceil(todo / left)
                steps += [step] * min(count, len(ids) - len(steps))
                todo, step = todo - count, step + 1
        return DenoisingTrace(tuple(steps), self.block, self.canvas)

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        """Hidden state that predicts each token, in the canvas before the token's step."""
        given_orders = denoisings or [None] * len(completions)
        orders = [order or self.denoising_schedule(ids) for order, ids in zip(given_orders, completions, strict=True)]
        states, rows, cells = [], [], []  # canvases; their rollout; per token (canvas, column)
        for row, (prompt, ids, order) in enumerate(zip(prompts, completions, orders, strict=True)):
            first, canvases = len(states), self._states(prompt, ids, order)
            states += canvases
            rows += [row] * len(canvases)
            cells += [(first + step, column) for column, step in enumerate(order.steps)]
        if not cells:
            return ViewOutput.of(torch.zeros(0, self.head_width, device=self.device), self.head, self.vocabulary)
        context, at = _Context(self, prompts, list(range(len(prompts)))), torch.tensor(cells)
        order = at[:, 0].argsort(stable=True)
        parts = []
        for start in range(0, len(states), STATES):
            chunk = slice(start, start + STATES)
            canvas, lengths = _stack(states[chunk], self.pad_id)
            hidden = self._canvas_hidden(context, torch.tensor(rows[chunk]), canvas.to(self.device), lengths)
            inside = at[order][(at[order, 0] >= start) & (at[order, 0] < start + STATES)]
            parts.append(hidden[inside[:, 0] - start, inside[:, 1]])
        return ViewOutput.of(torch.cat(parts)[order.argsort().to(self.device)], self.head, self.vocabulary)

    def _states(self, prompt: Prompt, ids: tuple[int, ...], order: DenoisingTrace) -> list[list[int]]:
        """Canvas before each step, with the future that the prompt reveals."""
        closed = order.steps[-1] if ids and ids[-1] in self.stop_ids else order.num_steps
        final = [*ids, *[self.pad_id] * (order.canvas - len(ids))]
        when = [*order.steps, *[closed] * (order.canvas - len(ids))]
        states = []
        for step in range(order.num_steps):
            revealed = set(prompt.future[step]) if prompt.future else ()
            states.append(
                [token if when[at] < step or at in revealed else self.mask_id for at, token in enumerate(final)]
            )
        return states

    def _logits(
        self, context: "_Context", rows: Int[Tensor, " A"], canvas: Int[Tensor, "A C"], masked: Bool[Tensor, "A C"]
    ) -> Float[Tensor, "M V"]:
        hidden = self._canvas_hidden(context, rows, canvas, torch.full((len(rows),), canvas.shape[1]))
        return self.head(hidden[masked])[:, : self.vocabulary]

    def _canvas_hidden(
        self, context: "_Context", rows: Int[Tensor, " A"], canvas: Int[Tensor, "A C"], lengths: Int[Tensor, " A"]
    ) -> Float[Tensor, "A C D"]:
        """Hidden states at every position of some canvases, each after the prompt of its row."""
        ids, mask, extra = context.of(rows)
        inside = (torch.arange(canvas.shape[1]) < lengths.unsqueeze(-1)).to(mask.device, mask.dtype)
        mask = torch.cat((mask, inside), -1)
        inputs = {
            "input_ids": torch.cat((ids, canvas), -1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        }
        hidden = self._hidden(inputs | extra)[:, -canvas.shape[1] :]
        return self.model.get_submodule(self._transform)(hidden) if self._transform else hidden


class _Context:
    """Encoded prompts of a batch with image features; `rows` has the prompt index of each row."""

    def __init__(self, policy: DiffusionPolicy, prompts: list[Prompt], rows: list[int]) -> None:
        unique, which = distinct(prompts)
        # the encoding of a prompt does not depend on its future
        encoded = policy._to_device(policy.encoder.batch([replace(prompt, future=()) for prompt in unique]))
        self.prompt_of = torch.tensor([which[row] for row in rows])
        self.ids, self.mask = encoded["input_ids"], encoded["attention_mask"]
        pixels = {name: encoded[name] for name in ("pixel_values", "pixel_attention_mask") if name in encoded}
        self.features: dict[int, Tensor] = {}  # by index of a prompt with images
        if pixels and not policy._takes_features:
            raise PolicyError(
                f"{policy.name}: {type(policy.model).__name__} takes no image features. Choose another model, or data "
                "without images."
            )
        if pixels:
            with policy._adapter_state():
                features = policy.model.base_model.get_image_features(**pixels).pooler_output
            with_images = [idx for idx, prompt in enumerate(unique) if prompt.images]
            self.features = dict(zip(with_images, features, strict=True))

    def of(self, rows: Int[Tensor, " A"]) -> tuple[Tensor, Tensor, dict]:
        """Ids (A, P), mask (A, P) and image features of the prompts of A rows; P is the longest prompt's length."""
        prompt = self.prompt_of[rows.cpu()]
        features = [self.features[idx] for idx in prompt.tolist() if idx in self.features]
        prompt = prompt.to(self.ids.device)
        return self.ids[prompt], self.mask[prompt], {"image_hidden_states": features} if features else {}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stack(states: list[list[int]], pad_id: int) -> tuple[Int[Tensor, "A C"], Int[Tensor, " A"]]:
    """Stack A canvases to one batch of the longest one's length C, padded on the right, and return their lengths."""
    longest = max(map(len, states))
    rows = [[*state, *[pad_id] * (longest - len(state))] for state in states]
    return torch.tensor(rows), torch.tensor([len(state) for state in states])
