"""Hugging Face image-text-to-text and causal language models as policies.

Prompts of different views differ in length (a crop adds image tokens), so only completion positions correspond. The
module `passes` lays out the rows of a batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.errors import DataError, PolicyError, PromptTooLongError
from workbench.policies import Completion, Sampler, SamplingOptions
from workbench.policies.adapters import add_adapter, beside
from workbench.policies.encoding import PromptEncoder
from workbench.policies.heads import output_layer
from workbench.policies.models import load_model
from workbench.policies.passes import Passes, Sent, States
from workbench.policies.proof import Proof, prove
from workbench.policies.sampling import in_blocks, sample_tokens, uniform
from workbench.policies.view_output import Head, ViewOutput
from workbench.policies.vllm import Engine, Generation, Request, check_same_prompt, weights_of
from workbench.types import DenoisingTrace, Prompt

_PLACEHOLDERS = tuple(
    f"{name}_token_id" for name in ("image", "video", "audio", "vision_start", "audio_start")
)  # keys of a model's configuration
LEAVING = 0.25  # share of finished rows at which they leave the batch


class AutoregressivePolicy(Passes):
    """A model with its processor, which samples completions and computes their hidden states.

    adapter  "off" disables LoRA adapters (student@start under LoRA); None leaves the model unchanged
    """

    def __init__(
        self, model: nn.Module, processor, name: str, *, vocabulary: int | None = None, adapter: str | None = None
    ) -> None:
        super().__init__(model, PromptEncoder(processor, max_prompt_length=_context_length(model)), adapter)
        self.name, self.processor = name, processor
        self.tokenizer = self.encoder.tokenizer
        self._token_texts: dict[int, str] = {}
        self.head = Head(output_layer(model))
        self.proof: Proof | None = None
        self.vocabulary = vocabulary or output_layer(model).weight.shape[0]
        self.stop_ids = stop_ids(model, self.tokenizer)
        if not self.stop_ids:
            raise PolicyError(
                f"{name}: neither the tokenizer nor generation_config has an end token, so answers would not end. Set "
                "eos_token_id in the model's generation_config.json."
            )
        # placeholders are replaced by features, and a start has one after it, so the student must not sample them
        tokens = (getattr(model.config, name, None) for name in _PLACEHOLDERS)
        self.placeholders = [token for token in tokens if isinstance(token, int) and token < self.vocabulary]
        self.source: str | Path | None = None  # folder or hub name
        self.engine: Engine | None = None  # samples instead of the model
        self.sampler: Sampler | None = None  # the same, on a server

    @property
    def samples_itself(self) -> bool:
        """Whether its own passes sample, and neither an engine nor a server."""
        return self.engine is None and self.sampler is None

    @property
    def head_width(self) -> int:
        """Width of the head's input: of hidden states, or of the logits themselves."""
        if not self.shortcuts.head:
            return output_layer(self.model).weight.shape[0]
        return self.model.get_input_embeddings().weight.shape[1]

    def prove(self) -> Proof:
        """Compare the shortcuts with the model's own forward pass, once; shortcuts that differ are switched off.

        Raises: PolicyError if that pass fails.
        """
        if self.proof is None:
            self.apply(prove(self))
        return self.proof

    def apply(self, proof: Proof) -> None:
        """Apply a proof of these weights, or of a model with the same files."""
        self.proof, self.shortcuts = proof, proof.shortcuts
        if proof.shortcuts.head:
            layer = output_layer(self.model)
            head = Head(getattr(layer, "base_layer", layer) if self.adapter == "off" else layer, **proof.head)
        else:
            head = Head(torch.nn.Identity())
        self.head = replace(head, eos_ids=self.head.eos_ids)

    def copy(self, name: str) -> "AutoregressivePolicy":
        """Frozen copy of the weights; shares processor and encoded prompts."""
        return self._twin(copy.deepcopy(self.model).requires_grad_(False).eval(), name)

    def add_adapter(self, config: object) -> None:
        """Add a new low-rank adapter (a peft configuration) to the model."""
        add_adapter(self.model, config)
        if self.shortcuts.head:
            self.head = replace(self.head, linear=output_layer(self.model))

    def beside(self, name: str) -> "AutoregressivePolicy":
        """Frozen copy of the adapter on the same base weights; shares processor and encoded prompts."""
        return self._twin(beside(self.model), name)

    def _twin(self, model: nn.Module, name: str) -> "AutoregressivePolicy":
        twin = type(self)(model, self.processor, name, vocabulary=self.vocabulary)
        twin.encoder, twin.source, twin.stop_ids = self.encoder, self.source, self.stop_ids
        if self.proof is not None:
            twin.apply(self.proof)
        twin.head = replace(twin.head, eos_ids=self.head.eos_ids)
        return twin

    def without_adapter(self, name: str) -> "AutoregressivePolicy":
        """The same weights with LoRA adapters disabled."""
        twin = copy.copy(self)
        twin.name, twin.adapter = name, "off"
        linear = self.head.linear
        twin.head = replace(self.head, linear=getattr(linear, "base_layer", linear))
        return twin

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens of prompt and completion together; None = no limit."""
        return self.encoder.context_length

    def check_prompt(self, prompt: Prompt, completion_length: int = 0) -> None:
        """Raise DataError or PolicyError if the images cannot be read, or the prompt with a completion is too long."""
        length = self.encoder.encode(prompt)["input_ids"].shape[1]
        if self.context_length is not None and length + completion_length > self.context_length:
            raise PromptTooLongError(
                f'prompt "{prompt.key}" has {length} tokens (images included) and its answer {completion_length}. '
                f"Expected at most {self.context_length} together. Shorten one of them, or use smaller images."
            )

    def special_in(self, text: str) -> str | None:
        """Return a special token that occurs in the text; None if none does."""
        return self.encoder.special_in(text)

    @torch.no_grad()
    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        """Sample one completion per seed of each prompt; it depends only on its prompt and seed.

        The key-value cache of a prompt is computed once and repeated for its completions. An engine, if set, samples
        instead.
        """
        if self.sampler is not None:
            return self.sampler.sample(self, prompts, seeds, options)
        if self.engine is not None:
            with torch.autocast(self.device.type, enabled=False):  # the engine sets its own precision
                if self.shards is None:  # else `sample_together` has loaded them, by all ranks
                    self.engine.load(weights_of(self.model))
                return self.sample_by(self.engine, prompts, seeds, options)
        self.prove()
        repeated = [prompt for prompt, prompt_seeds in zip(prompts, seeds, strict=True) for _ in prompt_seeds]
        flat = [seed for prompt_seeds in seeds for seed in prompt_seeds]
        sampled: dict[int, Completion] = {}
        with self.evaluation():
            for part in self.parts(repeated):
                states = self.states([repeated[row] for row in part])
                sampled |= zip(part, self._continue(states, [flat[row] for row in part], options), strict=True)
        in_order = (sampled[row] for row in range(len(repeated)))
        return [[next(in_order) for _ in prompt_seeds] for prompt_seeds in seeds]

    def prefetch_samples(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> None:
        """Begin on the served sampler what `sample` with the same arguments then waits for."""
        assert self.sampler is not None, "without a served sampler nothing samples meanwhile"
        self.sampler.prefetch(self, prompts, seeds, options)

    def sample_by(
        self, engine: Engine, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions
    ) -> list[list[Completion]]:
        """Sample with an engine's weights. Raises PolicyError if its prompt tokens differ from the policy's."""
        sampled = engine.generate(self.generation(prompts, seeds, options))
        for prompt, completions in zip(prompts, sampled, strict=True):
            expected_ids = tuple(self.encoder.encode(prompt)["input_ids"][0].tolist())
            for completion in completions:
                check_same_prompt(completion.prompt_ids, expected_ids, prompt.key)
        return [
            [self._cut(completion.ids, completion.logprobs) for completion in completions] for completions in sampled
        ]

    def generation(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> Generation:
        """What an engine samples for `sample` with the same arguments."""
        requests = [Request(*self.encoder.request(prompt)) for prompt in prompts]
        padding = range(self.vocabulary, output_layer(self.model).weight.shape[0])  # unused entries of the head
        return Generation(requests, seeds, options, self.stop_ids, [*self.placeholders, *padding])

    def _continue(self, states: States, seeds: list[int], options: SamplingOptions) -> list[Completion]:
        """Sample tokens until all rows have ended, then cut each row at its end token."""
        stop = torch.tensor(sorted(self.stop_ids), device=self.device)
        placeholders = torch.tensor(self.placeholders, dtype=torch.long, device=self.device)
        numbers = torch.stack([uniform(seed, options.max_completion_length) for seed in seeds]).to(self.device)
        longest = options.max_completion_length
        ids_BT = torch.zeros(len(seeds), longest, dtype=torch.long, device=self.device)
        logprobs_BT, entropies_BT = torch.zeros(2, len(seeds), longest, device=self.device)
        stopped: dict[int, tuple[int, str]] = {}  # by row: length and stop string
        rows, ended = torch.arange(len(seeds), device=self.device), torch.zeros_like(ids_BT[:, 0], dtype=torch.bool)
        hidden, logits_of = next(states), in_blocks(self.head, len(seeds), longest)
        for column in range(longest):
            uniform_B = numbers[rows, column]
            drawn = sample_tokens(logits_of, hidden, self.vocabulary, placeholders, uniform_B, options)
            ids_BT[rows, column], logprobs_BT[rows, column] = drawn.ids, drawn.logprobs.float()
            if drawn.entropies is not None:
                entropies_BT[rows, column] = drawn.entropies.float()
            ended = ended | torch.isin(drawn.ids, stop)
            for at in (~ended).nonzero().flatten().tolist() if options.stop_strings else ():
                row = int(rows[at])
                if text := self._stop_string(ids_BT[row, : column + 1], options.stop_strings):
                    stopped[row], ended[at] = (column + 1, text), True
            num_ended = int(ended.sum())
            if num_ended == len(ended) or column + 1 == longest:
                break
            sent = Sent(drawn.ids)
            if options.evaluates and self.rows_can_leave and num_ended >= LEAVING * len(ended):
                staying = (~ended).nonzero().squeeze(-1)
                rows, ended, sent = rows[staying], ended[staying], Sent(drawn.ids[staying], staying)
            hidden = states.send(sent)
        columns = [values[:, : column + 1].tolist() for values in (ids_BT, logprobs_BT, entropies_BT)]
        if not options.evaluates:
            columns[2] = [None] * len(seeds)
        completions = []
        for row, (ids, logprobs, entropies) in enumerate(zip(*columns, strict=True)):
            length, text = stopped.get(row, (None, ""))
            completions.append(self._cut(ids, logprobs, entropies, length, text))
        return completions

    def _stop_string(self, ids: Tensor, stop_strings: tuple[str, ...]) -> str:
        """The stop string that the last of these tokens completes, "" if none. A token has at least one byte."""
        longest = max(len(text.encode()) for text in stop_strings)
        tail = self._decode(ids[-longest - 4 :].tolist())
        return next((text for text in stop_strings if text in tail), "")

    def _cut(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        entropies: Sequence[float] | None = None,
        stop_length: int | None = None,
        stop_string: str = "",
    ) -> Completion:
        """Cut a completion at its first end token and replace that by the first of the unified end tokens.

        stop_length  tokens up to a stop string that came before any end token
        """
        if stop_length is not None:
            kept = None if entropies is None else tuple(entropies[:stop_length])
            return Completion(
                tuple(ids[:stop_length]),
                tuple(logprobs[:stop_length]),
                True,
                entropies=kept,
                stop_string=stop_string,
            )
        length = next((count for count, token in enumerate(ids, start=1) if token in self.stop_ids), None)
        kept = None if entropies is None else tuple(entropies[:length])
        if length is None:
            return Completion(tuple(ids), tuple(logprobs), False, entropies=kept)
        end = self.head.eos_ids[0] if self.head.eos_ids else ids[length - 1]
        return Completion((*ids[: length - 1], end), tuple(logprobs[:length]), True, entropies=kept)

    def denoising_schedule(self, ids: tuple[int, ...]) -> DenoisingTrace | None:
        """None: from left to right."""
        return None

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        """Hidden states of all completion positions, row after row, with gradient unless disabled by the caller.

        A prompt of several rows (several answers to one question) passes through the model once: its key-value cache is
        repeated for its rows, and its gradient is the sum of theirs.
        """
        self.prove()
        rows = [row for row, ids in enumerate(completions) if ids]
        if not rows:
            return ViewOutput.of(torch.zeros(0, self.head_width, device=self.device), self.head, self.vocabulary)
        hidden = self.completion_states([prompts[row] for row in rows], [completions[row] for row in rows])
        return ViewOutput.of(hidden, self.head, self.vocabulary)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Tokenize an answer, with an end token."""
        special = self.special_in(text)
        if special is not None:
            raise DataError(f'answer {text[:80]!r} contains the special token "{special}" as text. Remove it.')
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_id)

    @property
    def end_id(self) -> int:
        """End token of tokenized answers: the first of the unified end tokens, or the tokenizer's."""
        end_id = self.head.eos_ids[0] if self.head.eos_ids else self.tokenizer.eos_token_id
        return min(self.stop_ids) if end_id is None else end_id

    def is_special(self, token_id: int) -> bool:
        """Return whether a token id is a special token or unused."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.get(token_id)
        is_text = token_id < len(tokenizer) and not (added and added.special)
        return token_id in tokenizer.all_special_ids or not is_text

    @property
    def answer_prefix(self) -> str:
        """Text that the chat template puts between a question and its answer."""
        return self.encoder.answer_prefix

    def text(self, ids: tuple[int, ...]) -> str:
        """Decode a completion without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """Decode one token id."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self._decode([token_id])
        return self._token_texts[token_id]

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        """Decode each token; the bytes of a character belong to the token that completes it."""
        texts, whole = [self.token_text(token_id) for token_id in ids], self._decode(ids)
        if "".join(texts) == whole and "\ufffd" not in whole:
            return texts
        # the text of a token can depend on earlier tokens, so decode it after the last complete ones
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
    """Load a left-to-right model, frozen and in evaluation mode; options as in load_model."""
    return AutoregressivePolicy(*load_model(path, name, **options), name)


def stop_ids(model: nn.Module, tokenizer) -> frozenset[int]:
    """All tokens that end an answer, of the generation config and the tokenizer."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)  # masked LMs have none
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    return frozenset(int(token) for token in [*declared, tokenizer.eos_token_id] if token is not None)


def _context_length(model: nn.Module) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
