"""What policies must agree on before their log-probs of one id can be compared: what the id means, and what ends an answer."""

from dataclasses import replace

from workbench.errors import PolicyError
from workbench.policies.autoregressive import AutoregressivePolicy
from workbench.policies.diffusion import DiffusionPolicy
from workbench.types import STUDENT

_SHOWN = 3  # tokens named that two vocabularies number differently


def share_vocabulary(policies: dict[str, AutoregressivePolicy]) -> None:
    """Cut every head to the entries that all policies have: families pad the same vocabulary to other multiples.

    Raises: PolicyError naming tokens that two policies number differently: their log-probs of one id would be of
    different words, and nothing later could tell.
    """
    student = policies[STUDENT]
    vocabulary = student.tokenizer.get_vocab()
    for policy in policies.values():
        if policy.tokenizer is not student.tokenizer:
            _refuse_other_tokens(policy, vocabulary)
    size = min(policy.vocabulary for policy in policies.values())
    if size < len(vocabulary):
        raise PolicyError(f"a head has {size} entries, but the student's tokenizer has {len(vocabulary)} tokens.")
    for policy in policies.values():
        extra = sum(token_id >= size for token_id in policy.tokenizer.get_vocab().values())
        if extra:
            raise PolicyError(
                f"{policy.name} knows {extra} tokens beyond the {size} entries that all heads share; choose models of one "
                "family."
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
        f"{policy.name} has another vocabulary than student: {examples}. {len(other):,} of {len(vocabulary):,} tokens differ, and "
        "distillation compares log-probs id by id. Needed: a teacher and a student with one tokenizer, as models of one "
        "family have whatever their size; a loss across tokenizers, which would have to align spans of text, is not there."
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
                        f"{policy.name}, so their ends cannot be made one. Take its id {token} out of eos_token_id in the "
                        f"generation_config.json of {other.name}, or choose models of one family."
                    )
    first = policies[STUDENT].end_id
    for policy in models:
        policy.stop_ids = ends
        policy.head = replace(policy.head, eos_ids=(first, *sorted(ends - {first})))
