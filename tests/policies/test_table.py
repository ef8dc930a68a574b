import math

import pytest
import torch
from small import example, table_policy
from table_policy import END, LogitTablePolicy

from workbench.data.contexts import build_prompt
from workbench.distill.losses import score
from workbench.policies import Policy, SamplingOptions


def test_table_policy_meets_protocol() -> None:
    policy = table_policy("student", 0)
    assert isinstance(policy, Policy)
    prompts = [build_prompt(example(idx), context) for idx, context in enumerate(("plain", "boxes"))]
    rows = policy.sample(prompts, [[1, 2], [3]], SamplingOptions(6))
    assert [len(row) for row in rows] == [2, 1]
    displayed, written = [prompts[0], prompts[0], prompts[1]], [*rows[0], *rows[1]]
    ids = torch.tensor([token for element in written for token in element.ids])
    read = score(policy.forward(displayed, [each.ids for each in written]), ids).logprob
    assert torch.allclose(read, torch.tensor([value for entry in written for value in entry.logprobs]), atol=1e-6)
    for item in written:
        assert item.finished == (item.ids[-1] == END)
        assert END not in item.ids[:-1]
        assert "".join(policy.token_texts(item.ids)).split() == [str(t) if t else "." for t in item.ids]
    assert policy.sample(prompts[1:], [[3]], SamplingOptions(6))[0] == rows[1]  # its own seed alone


def test_table_policy_example_name_with_bar_keeps_context() -> None:
    policy = table_policy("student", 0)
    prompts = [build_prompt(example(0, origin=origin), "boxes") for origin in ("a|plain", "b")]
    first, second = (policy.forward([prompt], [(1, 2)]).hidden for prompt in prompts)
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_table_policy_greedy_samples_most_likely_token(options: dict) -> None:
    table = torch.tensor([[0.0, 1.0, 2.0, 0.5], [3.0, 1.0, 2.0, 0.5]])
    policy = LogitTablePolicy("student", {"plain": table})
    for seed in range(20):
        ((item,),) = policy.sample([build_prompt(example(), "plain")], [[seed]], SamplingOptions(5, **options))
        assert item.ids == (2, END)


def test_table_policy_temperature_and_top_k_keep_log_probs() -> None:
    table = torch.tensor([[math.log(0.2), math.log(0.5), math.log(0.3)]])
    policy = LogitTablePolicy("student", {"plain": table})
    prompt = build_prompt(example(), "plain")
    (drawn,) = policy.sample([prompt], [list(range(3000))], SamplingOptions(1, top_k=2))
    shares = [sum(each.ids == (token,) for each in drawn) / 3000 for token in range(3)]
    assert shares == pytest.approx([0.0, 5 / 8, 3 / 8], abs=0.05)  # over five standard deviations
    assert {round(entry.logprobs[0], 4) for entry in drawn} == {round(math.log(0.5), 4), round(math.log(0.3), 4)}
    (drawn,) = policy.sample([prompt], [list(range(3000))], SamplingOptions(1, temperature=0.5))
    assert sum(item.ids == (1,) for item in drawn) / 3000 == pytest.approx(25 / 38, abs=0.05)  # squares: 4, 25, 9
