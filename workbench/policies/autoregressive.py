"""Hugging Face image-text-to-text and causal language models as policies.

Views whose prompts differ in length (a crop adds image tokens) agree on completion positions and on nothing else: how rows
are laid out and passed is in `passes`.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from workbench.errors import DataError, PolicyError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.adapters import add_adapter, beside
from workbench.policies.encoding import PromptEncoder
from workbench.policies.models import load_model
from workbench.policies.passes import Passes, Sent, States
from workbench.policies.proof import Proof, prove
from workbench.policies.sampling import sample_tokens, uniform
from workbench.policies.view_output import Head, ViewOutput
from workbench.policies.vllm import Engine, Request, check_same_prompt, weights_of
from workbench.types import DenoisingTrace, Prompt

LEAVING = 0.25  # share of the rows that have ended, from which on they leave the batch


class AutoregressivePolicy(Passes):
    """A model with its processor: samples completions and reads them.

    adapter  None: the model as it is. "off": LoRA adapters switched off while reading (student@start under LoRA)
    """

    def __init__(
        self, model: nn.Module, processor, name: str, *, vocabulary: int | None = None, adapter: str | None = None
    ) -> None:
        super().__init__(model, PromptEncoder(processor, max_prompt_length=_context_length(model)), adapter)
        self.name, self.processor = name, processor
        self.tokenizer = self.encoder.tokenizer
        self._token_texts: dict[int, str] = {}
        self.head, self.proof = Head(model.get_output_embeddings()), None
        self.vocabulary = vocabulary or model.get_output_embeddings().weight.shape[0]
        self.stop_ids = stop_ids(model, self.tokenizer)
        if not self.stop_ids:
            raise PolicyError(
                f"{name}: neither the tokenizer nor generation_config names an end token, so an answer would never stop. "
                "Set eos_token_id in the model's generation_config.json."
            )
        # placeholders of images stand for features; one written by the student would stand for an image that is not there
        tokens = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
        self._placeholders = [token for token in tokens if isinstance(token, int) and token < self.vocabulary]
        self.source: str | Path | None = None  # what it was loaded from
        self.engine: Engine | None = None  # what writes instead of the model itself

    @property
    def head_width(self) -> int:
        """Of what the head is given: hidden states, or the logits themselves."""
        if not self.shortcuts.head:
            return self.model.get_output_embeddings().weight.shape[0]
        return self.model.get_input_embeddings().weight.shape[1]

    def prove(self) -> Proof:
        """Compare what is saved with the model's own forward pass, once; what does not hold is off from then on.

        Raises: PolicyError if that pass fails.
        """
        if self.proof is None:
            self.apply(prove(self))
        return self.proof

    def apply(self, proof: Proof) -> None:
        """Use what was proven of these weights, or of others of the same files."""
        self.proof, self.shortcuts = proof, proof.shortcuts
        if proof.shortcuts.head:
            layer = self.model.get_output_embeddings()
            head = Head(getattr(layer, "base_layer", layer) if self.adapter == "off" else layer, **proof.head)
        else:
            head = Head(torch.nn.Identity())
        self.head = replace(head, eos_ids=self.head.eos_ids)

    def copy(self, name: str) -> "AutoregressivePolicy":
        """An own copy of the weights, frozen; processor and kept prompts are shared."""
        return self._twin(copy.deepcopy(self.model).requires_grad_(False).eval(), name)

    def add_adapter(self, config: object) -> None:
        """Put a new low-rank adapter (a peft configuration) on the model."""
        add_adapter(self.model, config)
        if self.shortcuts.head:
            self.head = replace(self.head, linear=self.model.get_output_embeddings())

    def beside(self, name: str) -> "AutoregressivePolicy":
        """An own copy of the adapter, frozen, on the same weights; processor and kept prompts are shared."""
        return self._twin(beside(self.model), name)

    def _twin(self, model: nn.Module, name: str) -> "AutoregressivePolicy":
        twin = type(self)(model, self.processor, name, vocabulary=self.vocabulary)
        twin.encoder, twin.source, twin.stop_ids = self.encoder, self.source, self.stop_ids
        if self.proof is not None:
            twin.apply(self.proof)
        twin.head = replace(twin.head, eos_ids=self.head.eos_ids)
        return twin

    def without_adapter(self, name: str) -> "AutoregressivePolicy":
        """The same weights read with LoRA adapters switched off."""
        twin = copy.copy(self)
        twin.name, twin.adapter = name, "off"
        linear = self.head.linear
        twin.head = replace(self.head, linear=getattr(linear, "base_layer", linear))
        return twin

    @property
    def context_length(self) -> int | None:
        """The most tokens that prompt and completion have together; None = no limit."""
        return self.encoder.context_length

    def check_prompt(self, prompt: Prompt, completion_length: int = 0) -> None:
        """Raises DataError or PolicyError if the prompt's images cannot be read, or it is too long beside a completion."""
        length = self.encoder.encode(prompt)["input_ids"].shape[1]
        if self.context_length is not None and length + completion_length > self.context_length:
            raise PolicyError(
                f'prompt "{prompt.key}" has {length} tokens (images included) and its reference {completion_length}; the '
                f"model takes {self.context_length}. Shorten one of them, or use smaller images."
            )

    def special_in(self, text: str) -> str | None:
        """A special token that stands in the text as words; None if there is none."""
        return self.encoder.special_in(text)

    @torch.no_grad()
    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        """Completions, one per seed of each prompt; each depends on its own seed and prompt, not on its neighbours.

        The prompt's key-value cache is made once and repeated for its completions. With an engine, that writes.
        """
        if self.engine is not None:
            return self._sample_by(self.engine, prompts, seeds, options)
        self.prove()
        repeated = [prompt for prompt, prompt_seeds in zip(prompts, seeds, strict=True) for _ in prompt_seeds]
        flat = [seed for prompt_seeds in seeds for seed in prompt_seeds]
        written: dict[int, Completion] = {}
        with self.evaluation():
            for part in self.parts(repeated):
                states = self.states([repeated[row] for row in part])
                written |= zip(part, self._continue(states, [flat[row] for row in part], options), strict=True)
        in_order = (written[row] for row in range(len(repeated)))
        return [[next(in_order) for _ in prompt_seeds] for prompt_seeds in seeds]

    def _sample_by(
        self, engine: Engine, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions
    ) -> list[list[Completion]]:
        """Raises PolicyError if the engine reads another prompt than the student."""
        requests = [Request(*self.encoder.request(prompt)) for prompt in prompts]
        padding = range(self.vocabulary, self.model.get_output_embeddings().weight.shape[0])  # stands for no token
        with torch.autocast(self.device.type, enabled=False):  # an engine in this process has a precision of its own
            engine.load(weights_of(self.model))
            sampled = engine.generate(requests, seeds, options, self.stop_ids, [*self._placeholders, *padding])
        for prompt, completions in zip(prompts, sampled, strict=True):
            expected_ids = tuple(self.encoder.encode(prompt)["input_ids"][0].tolist())
            for completion in completions:
                check_same_prompt(completion.prompt_ids, expected_ids, prompt.key)
        return [
            [self._cut(completion.ids, completion.logprobs) for completion in completions] for completions in sampled
        ]

    def _continue(self, states: States, seeds: list[int], options: SamplingOptions) -> list[Completion]:
        """Draw tokens until all rows have ended. What stands behind a row's end is cut away, or was never drawn."""
        stop = torch.tensor(sorted(self.stop_ids), device=self.device)
        placeholders = torch.tensor(self._placeholders, dtype=torch.long, device=self.device)
        numbers = torch.stack([uniform(seed, options.max_completion_length) for seed in seeds]).to(self.device)
        longest = options.max_completion_length
        ids_BT = torch.zeros(len(seeds), longest, dtype=torch.long, device=self.device)
        logprobs_BT, entropies_BT = torch.zeros(2, len(seeds), longest, device=self.device)
        rows, ended = torch.arange(len(seeds), device=self.device), torch.zeros_like(ids_BT[:, 0], dtype=torch.bool)
        hidden = next(states)
        for column in range(longest):
            uniform_B = numbers[rows, column]
            drawn = sample_tokens(self.head, hidden, self.vocabulary, placeholders, uniform_B, options)
            ids_BT[rows, column], logprobs_BT[rows, column] = drawn.ids, drawn.logprobs.float()
            if drawn.entropies is not None:
                entropies_BT[rows, column] = drawn.entropies.float()
            ended = ended | torch.isin(drawn.ids, stop)
            num_ended = int(ended.sum())
            if num_ended == len(ended) or column + 1 == longest:
                break
            sent = Sent(drawn.ids)
            if options.evaluates and self.rows_can_leave and num_ended >= LEAVING * len(ended):
                staying = (~ended).nonzero().squeeze(-1)
                rows, ended, sent = rows[staying], ended[staying], Sent(drawn.ids[staying], staying)
            hidden = states.send(sent)
        written = [values[:, : column + 1].tolist() for values in (ids_BT, logprobs_BT, entropies_BT)]
        if not options.evaluates:
            written[2] = [None] * len(seeds)
        return [self._cut(*row) for row in zip(*written, strict=True)]

    def _cut(
        self, ids: Sequence[int], logprobs: Sequence[float], entropies: Sequence[float] | None = None
    ) -> Completion:
        """Ends a completion at its first end token, written as the one that stands for all."""
        length = next((count for count, token in enumerate(ids, start=1) if token in self.stop_ids), None)
        kept = None if entropies is None else tuple(entropies[:length])
        if length is None:
            return Completion(tuple(ids), tuple(logprobs), False, entropies=kept)
        end = self.head.eos_ids[0] if self.head.eos_ids else ids[length - 1]
        return Completion((*ids[: length - 1], end), tuple(logprobs[:length]), True, entropies=kept)

    def denoising_schedule(self, ids: tuple[int, ...]) -> DenoisingTrace | None:
        """None: from left to right, token by token."""
        return None

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        """Hidden states of all completion positions, row after row; with gradient unless it is switched off outside.

        A prompt that occurs in several rows (several answers to one question) passes the model once: its key-value
        cache is repeated for its rows, and its gradient is the sum of theirs.
        """
        self.prove()
        rows = [row for row, ids in enumerate(completions) if ids]
        if not rows:
            return ViewOutput(torch.zeros(0, self.head_width, device=self.device), self.head, self.vocabulary)
        hidden = self.read_states([prompts[row] for row in rows], [completions[row] for row in rows])
        return ViewOutput(hidden, self.head, self.vocabulary)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer given as text, as the model would have written it: its tokens and the end token."""
        special = self.special_in(text)
        if special is not None:
            raise DataError(f'answer {text[:80]!r} contains the special token "{special}" as text: remove it.')
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_id)

    @property
    def end_id(self) -> int:
        """The token that an answer given as text ends with: where several are one action, the one that stands for all."""
        end_id = self.head.eos_ids[0] if self.head.eos_ids else self.tokenizer.eos_token_id
        return min(self.stop_ids) if end_id is None else end_id

    def is_special(self, token_id: int) -> bool:
        """Whether an entry of the vocabulary is a mark of the model's and no text, or no token at all."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.get(token_id)
        is_text = token_id < len(tokenizer) and not (added and added.special)
        return token_id in tokenizer.all_special_ids or not is_text

    def text(self, ids: tuple[int, ...]) -> str:
        """The completion as text, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """One entry of the vocabulary as text."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self._decode([token_id])
        return self._token_texts[token_id]

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        """Each token's own text; bytes of an unfinished character stay with the token that finishes it."""
        texts, whole = [self.token_text(token_id) for token_id in ids], self._decode(ids)
        if "".join(texts) == whole and "\ufffd" not in whole:
            return texts
        # a token's text may depend on what is before it: each is decoded after the last finished ones
        texts, start, done = [], 0, 0
        for stop in range(1, len(ids) + 1):
            before, so_far = self._decode(ids[start:done]), self._decode(ids[start:stop])
            complete = not so_far.endswith("\ufffd") or stop == len(ids)
            texts.append(so_far[len(before) :] if complete and so_far.startswith(before) else "")
            if complete:
                start, done = done, stop
        return texts

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def load_policy(path: str | Path, name: str, **options) -> AutoregressivePolicy:
    """A model that writes from left to right, frozen and in evaluation mode; options are those of load_model."""
    return AutoregressivePolicy(*load_model(path, name, **options), name)


def stop_ids(model: nn.Module, tokenizer) -> frozenset[int]:
    """Every token that ends an answer: the generation config's and the tokenizer's."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)  # masked LMs have none
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    return frozenset(int(token) for token in [*declared, tokenizer.eos_token_id] if token is not None)


def _context_length(model: nn.Module) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
