"""Policy by domain: each prompt goes to the policy of its example's domain."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from workbench.errors import PolicyError
from workbench.policies import Completion, Policy, SamplingOptions, prefetches
from workbench.policies.row_sizes import RowSize, padded_tokens
from workbench.policies.view_output import ViewOutput, join_outputs
from workbench.types import DenoisingTrace, Prompt


def is_by_domain(policies: Iterable[str], teachers: Mapping[str, str]) -> bool:
    """Return whether "teacher" has one policy per domain: with models.teachers, unless views name these directly."""
    names = list(policies)
    return bool(teachers) and "teacher" in names and not any(name.startswith("teacher:") for name in names)


@dataclass(frozen=True)
class PolicyByDomain:
    """Dispatches prompts to the policy of their domain.

    members  policy by domain; domains can share one
    other    policy of all other domains, or None
    """

    name: str
    members: Mapping[str, Policy]
    other: Policy | None = None

    def of(self, domain: str) -> Policy:
        """Policy of a domain. Raises PolicyError for an unknown one."""
        policy = self.members.get(domain, self.other)
        if policy is None:
            raise PolicyError(
                f'unknown {self.name} for domain "{domain}". Expected one of {", ".join(self.members)}. Add the domain '
                f"to models.{self.name}s, or set models.{self.name} for all other domains."
            )
        return policy

    @property
    def device(self) -> torch.device:
        return self._all[0].device

    @property
    def context_length(self) -> int | None:
        return min((policy.context_length for policy in self._all if policy.context_length is not None), default=None)

    def check_prompt(self, prompt: Prompt, completion_length: int = 0) -> None:
        self.of(prompt.domain).check_prompt(prompt, completion_length)

    def special_in(self, text: str) -> str | None:
        return next((token for policy in self._all if (token := policy.special_in(text)) is not None), None)

    def sample(self, prompts: list[Prompt], seeds: list[list[int]], options: SamplingOptions) -> list[list[Completion]]:
        sampled: list[list[Completion]] = [[] for _ in prompts]
        for policy, rows in self._groups(prompts):
            group_completions = policy.sample([prompts[row] for row in rows], [seeds[row] for row in rows], options)
            for row, completions in zip(rows, group_completions, strict=True):
                sampled[row] = completions
        return sampled

    @property
    def prefetches(self) -> bool:
        """Whether one of the policies computes elsewhere."""
        return any(map(prefetches, self._all))

    def prefetch(
        self, prompts: list[Prompt], completions: list[tuple[int, ...]], passes: list[list[int]] | None = None
    ) -> None:
        """Begin the passes of policies that compute elsewhere."""
        for policy, rows in self._groups(prompts):
            if prefetches(policy):
                position = {row: idx for idx, row in enumerate(rows)}
                parts = [[position[row] for row in part if row in position] for part in passes or [rows]]
                policy.prefetch([prompts[row] for row in rows], [completions[row] for row in rows], parts)

    def forward(
        self,
        prompts: list[Prompt],
        completions: list[tuple[int, ...]],
        denoisings: list[DenoisingTrace | None] | None = None,
    ) -> ViewOutput:
        denoisings = denoisings or [None] * len(completions)
        lengths = [len(ids) for ids in completions]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        outputs, positions = [], []
        for policy, rows in self._groups(prompts):
            positions += [torch.arange(ends[row] - lengths[row], ends[row]) for row in rows]
            outputs.append(
                policy.forward(
                    [prompts[row] for row in rows],
                    [completions[row] for row in rows],
                    [denoisings[row] for row in rows],
                )
            )
        output = join_outputs(outputs)
        return output.select(torch.cat(positions).argsort().to(output.device))

    def row_sizes(self, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> list[RowSize]:
        return [
            self.of(prompt.domain).row_sizes([prompt], [ids])[0]
            for prompt, ids in zip(prompts, completions, strict=True)
        ]

    def pass_tokens(self, rows: Sequence[RowSize]) -> int:
        return padded_tokens(rows)  # at least what the passes of its members take

    def denoising_schedule(self, ids: tuple[int, ...]) -> DenoisingTrace | None:
        return self._any.denoising_schedule(ids)

    @property
    def answer_prefix(self) -> str:
        return self._any.answer_prefix

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return self._any.answer_ids(text)

    def text(self, ids: tuple[int, ...]) -> str:
        return self._any.text(ids)

    def token_texts(self, ids: tuple[int, ...]) -> list[str]:
        return self._any.token_texts(ids)

    @property
    def _all(self) -> list[Policy]:
        policies = (*self.members.values(), *(() if self.other is None else (self.other,)))
        return list({id(policy): policy for policy in policies}.values())

    @property
    def _any(self) -> Policy:
        """Any of the policies; they share one vocabulary."""
        return next(iter(self.members.values()))

    def _groups(self, prompts: list[Prompt]) -> Iterator[tuple[Policy, list[int]]]:
        """Yield each policy with the indices of its prompts."""
        policies = [self.of(prompt.domain) for prompt in prompts]
        for policy in {id(policy): policy for policy in policies}.values():
            yield policy, [row for row, row_policy in enumerate(policies) if row_policy is policy]


def member(policy: Policy, domain: str) -> Policy:
    """The policy itself, or the one of a domain if there are several. Raises PolicyError for an unknown domain."""
    return policy.of(domain) if isinstance(policy, PolicyByDomain) else policy


def covers(policy: Policy, domain: str) -> bool:
    """Return whether the policy has a model for a domain."""
    return not isinstance(policy, PolicyByDomain) or policy.other is not None or domain in policy.members
