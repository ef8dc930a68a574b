"""Compatibility of policies: vocabulary and end tokens must match before log-probs of one id can be compared."""

from dataclasses import replace

from workbench.errors import PolicyError
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.diffusion import DiffusionPolicy
from workbench.types import STUDENT

_SHOWN = 3  # examples of differing token ids in a message


def share_vocabulary(policies: dict[str, AutoregressivePolicy]) -> None:
    """Truncate every head to the entries that all policies share, since families pad one vocabulary differently.

    Raises: PolicyError listing tokens whose ids differ between two policies, whose log-probs cannot be compared.
    """
    student = policies[STUDENT]
    vocabulary = student.tokenizer.get_vocab()
    for policy in policies.values():
        if policy.tokenizer is not student.tokenizer:
            _refuse_other_tokens(policy, vocabulary)
    size = min(policy.vocabulary for policy in policies.values())
    if size < len(vocabulary):
        raise PolicyError(
            f"a head has {size} entries. Expected at least the {len(vocabulary)} tokens of the student's tokenizer. "
            "Choose models of one family."
        )
    for policy in policies.values():
        extra = sum(token_id >= size for token_id in policy.tokenizer.get_vocab().values())
        if extra:
            raise PolicyError(
                f"{policy.name} has {extra} tokens beyond the {size} entries that all heads share. Choose models of "
                "one family."
            )
        policy.vocabulary = size


def _refuse_other_tokens(policy: AutoregressivePolicy, vocabulary: dict[str, int]) -> None:
    theirs = policy.tokenizer.get_vocab()
    other = [token for token, token_id in vocabulary.items() if theirs.get(token) != token_id]
    if not other:
        return
    examples = "; ".join(
        f'token "{token}" is id {vocabulary[token]} for the student, and {policy.name} has '
        + ("no such token" if token not in theirs else f"id {theirs[token]}")
        for token in other[:_SHOWN]
    )
    raise PolicyError(
        f"{policy.name} has another vocabulary than student: {examples}. {len(other):,} of {len(vocabulary):,} tokens "
        "differ. Expected one tokenizer for teacher and student, since losses compare log-probs by token id. Choose "
        "models of one family."
    )


def unify_eos_tokens(policies: dict[str, AutoregressivePolicy]) -> None:
    """Have every policy end an answer by one action, whichever end tokens it prefers.

    A base student stops with another token than an instructed teacher; compared id by id, the student's end is punished
    and nothing put in its place, and answers grow. So the probabilities of all end tokens are added up on every side,
    before any loss.  Source: When EOS Tokens Disagree (arXiv 2609.20511).

    Raises: PolicyError if what ends an answer for one policy is ordinary text for another: there it must not stop.
    """
    models = [policy for policy in policies.values() if not isinstance(policy, DiffusionPolicy)]
    ends = frozenset().union(*(policy.stop_ids for policy in models))
    if len(ends) < 2:
        return
    for policy in models:
        for other in models:
            for token in sorted(other.stop_ids - policy.stop_ids):
                if not policy.is_special(token):
                    raise PolicyError(
                        f'{other.name} ends an answer with "{other.token_text(token)}", which is ordinary text for '
                        f"{policy.name}, so their ends cannot be made one. Take its id {token} out of eos_token_id in "
                        f"the generation_config.json of {other.name}, or choose models of one family."
                    )
    first = policies[STUDENT].end_id
    for policy in models:
        policy.stop_ids = ends
        policy.head = replace(policy.head, eos_ids=(first, *sorted(ends - {first})))
