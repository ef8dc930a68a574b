"""Every family of models: what it writes it reads the same, alone or in a batch, with images shared or not."""

import dataclasses
import math

import pytest
import torch
from failures import raises
from transformers import GenerationConfig

from workbench.distill.losses import score
from workbench.errors import DataError, PolicyError
from workbench.policies import Completion, SamplingOptions
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.types import Prompt

CLOSE = 2e-5  # nats; padding and batching change the order of float32 additions
SEEDS = [[1, 2], [3], [4, 5, 6]]
LENGTH = 9


def logprobs(policy: AutoregressivePolicy, prompts: list[Prompt], completions: list[tuple[int, ...]]) -> torch.Tensor:
    ids = torch.tensor([token for completion in completions for token in completion])
    return score(policy.forward(prompts, completions), ids).logprob


def flat(prompts: list[Prompt], written: list[list[Completion]]) -> tuple[list[Prompt], list[Completion]]:
    """A prompt and a completion for every row."""
    rows = [(prompt, entry) for prompt, values in zip(prompts, written, strict=True) for entry in values]
    return [prompt for prompt, _ in rows], [item for _, item in rows]


def written(policy: AutoregressivePolicy, prompts: list[Prompt]) -> tuple[list[Prompt], list[Completion]]:
    return flat(prompts, policy.sample(prompts, SEEDS, SamplingOptions(LENGTH)))


def test_policy_samples_and_scores_equal_log_probs(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    displayed, rows = written(policy, prompts)
    sampled = torch.tensor([logprob for item in rows for logprob in item.logprobs])
    assert torch.allclose(logprobs(policy, displayed, [row.ids for row in rows]), sampled, atol=CLOSE)


def test_policy_row_alone_equals_padded_batch(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    displayed, rows = written(policy, prompts)
    completions = [item.ids[: 1 + row % LENGTH] for row, item in enumerate(rows)]  # all of another length
    alone = [logprobs(policy, [prompt], [ids]) for prompt, ids in zip(displayed, completions, strict=True)]
    assert torch.allclose(logprobs(policy, displayed, completions), torch.cat(alone), atol=CLOSE)


def test_policy_scores_are_causal(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    ids = (300, 301, 302, 303, 304, 305)
    changed = (*ids[:3], 310, 311, 312)
    first, second = (logprobs(policy, prompts[:1], [completion]) for completion in (ids, changed))
    assert torch.allclose(first[:3], second[:3], atol=CLOSE)
    assert not torch.allclose(first[4:], second[4:], atol=CLOSE)


def test_policy_logits_equal_those_of_model(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    completion = (300, 301, 302)
    inputs, start, _ = policy.model_inputs(prompts[:1], [completion])
    with torch.no_grad():
        whole = policy.model(**inputs).logits[0, start - 1 : start + 2].float()
        mine = policy.forward(prompts[:1], [completion]).logits(torch.arange(3))
    assert torch.allclose(mine, whole[:, : policy.vocabulary], atol=1e-5)


def test_policy_scores_depend_on_images(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    """A view that lost its pixels would be scored silently."""
    other = dataclasses.replace(prompts[0], images=prompts[2].images, key="other|plain")
    first, second = (logprobs(policy, [prompt], [(300, 301)]) for prompt in (prompts[0], other))
    assert not torch.allclose(first, second, atol=1e-3)


def test_policy_views_of_other_lengths_align_completions(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    completions = [(300,), (301, 302, 303, 304), (305, 306)]
    starts = set()
    for view in (prompts, [prompts[1]] * 3, [prompts[2], prompts[0], prompts[2]]):
        inputs, start, lengths = policy.model_inputs(view, completions)
        starts.add(start)
        for row, (ids, length) in enumerate(zip(completions, lengths.tolist(), strict=True)):
            assert tuple(inputs["input_ids"][row, start : start + length].tolist()) == ids
            assert inputs["attention_mask"][row, start : start + length].all()
            assert not inputs["attention_mask"][row, start + length :].any()
    assert len(starts) > 1


@pytest.mark.parametrize("recomputes", [False, True], ids=["prompts shared", "images shared"])
def test_policy_shared_prompts_equal_prompts_per_row(
    policy: AutoregressivePolicy, prompts: list[Prompt], recomputes: bool
) -> None:
    rows = [prompts[0], prompts[1], prompts[0], prompts[2], prompts[0], prompts[1]]
    completions = [(300, 301), (302,), (303, 304, 305), (306, 307), (308,), (309, 310)]
    copies = [dataclasses.replace(prompt) for prompt in rows]  # equal, and no two the same object: nothing is shared
    policy.model.requires_grad_(True).train()  # no family here has dropout
    if recomputes:
        policy.model.activation_checkpointing_enable()
    matches = []
    for displayed in (rows, copies):
        policy.model.zero_grad()
        hidden = policy.forward(displayed, completions).hidden
        hidden.square().sum().backward()
        matches.append((hidden.detach(), {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}))
    policy.model.zero_grad()
    policy.model.gradient_checkpointing_disable()
    policy.model.requires_grad_(False).eval()
    (hidden, gradient), (expected, expected_gradient) = matches
    assert torch.allclose(hidden, expected, atol=1e-4)
    assert gradient.keys() == expected_gradient.keys()
    assert any("vis" in name for name in gradient)  # "vision_tower", "visual"
    for name, value in expected_gradient.items():  # sums over rows in another order
        assert torch.allclose(gradient[name], value, atol=1e-4 * (1 + float(value.abs().max()))), name


def test_policy_batch_mixes_rows_with_and_without_images(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    text = Prompt((), "what is the color of the sky?", key="text|plain")
    if policy.model.config.model_type == "paligemma":  # its processor has no way to write such a prompt
        with pytest.raises(PolicyError, match="prompt"):
            policy.check_prompt(text)
        return
    displayed = [prompts[0], text, prompts[1], text, prompts[0]]
    completions = [(300, 301), (302, 303, 304), (305,), (306,), (307,)]
    alone = [logprobs(policy, [prompt], [ids]) for prompt, ids in zip(displayed, completions, strict=True)]
    assert torch.allclose(logprobs(policy, displayed, completions), torch.cat(alone), atol=CLOSE)


def test_policy_completion_depends_on_its_own_seed(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    options = SamplingOptions(LENGTH)
    together = policy.sample(prompts, SEEDS, options)
    for position, values in enumerate(SEEDS):
        assert [single.ids for single in policy.sample([prompts[position]], [values], options)[0]] == [
            element.ids for element in together[position]
        ]
    turned = policy.sample(prompts[::-1], [particular[::-1] for particular in SEEDS[::-1]], options)
    assert [[each.ids for each in local[::-1]] for local in turned[::-1]] == [
        [entry.ids for entry in selected] for selected in together
    ]
    assert len({item.ids for settings in together for item in settings}) == 6


def test_policy_evaluation_drops_finished_rows_unchanged(
    policy: AutoregressivePolicy, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = SamplingOptions(LENGTH, temperature=1.0)
    _, before = flat(prompts, policy.sample(prompts, SEEDS, sampled))
    ends = frozenset(
        one_value.ids[position] for one_value, position in zip(before, (1, 3, 5, 2, 8, 6), strict=True)
    )  # all end elsewhere
    monkeypatch.setattr(policy, "stop_ids", ends)
    displayed, stayed = flat(prompts, policy.sample(prompts, SEEDS, sampled))
    sizes, sent = [], policy._extend
    monkeypatch.setattr(
        policy, "_extend", lambda inputs, cache: sizes.append(len(inputs["input_ids"])) or sent(inputs, cache)
    )
    _, left = flat(prompts, policy.sample(prompts, SEEDS, dataclasses.replace(sampled, evaluates=True)))
    assert sizes[0] == 6 and sizes[-1] <= 2, "half of the rows ended, and the batch kept them"
    assert [(this.ids, this.finished) for this in left] == [(member.ids, member.finished) for member in stayed]
    assert len({len(single.ids) for single in left}) > 2
    ids = torch.tensor([token for element in left for token in element.ids])
    scores = score(policy.forward(displayed, [each.ids for each in left]), ids)
    for name, kept in (("logprob", "logprobs"), ("entropy", "entropies")):
        values = torch.tensor([value for entry in left for value in getattr(entry, kept)])
        assert torch.allclose(values, getattr(scores, name), atol=CLOSE), name
    assert all(item.entropies is None for item in stayed)


def test_policy_never_samples_image_placeholders(policy: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    config, entries = policy.model.config, policy.model.get_output_embeddings().weight.shape[0]
    start = getattr(config, "vision_start_token_id", entries)  # Qwen's position ids read the token after it
    placeholders = [config.image_token_id, *([start] if start < entries else [])]
    bias = torch.zeros(entries)
    bias[placeholders] = 1e4
    handle = policy.model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits + bias)
    try:
        for temperature in (0.0, 1.0):
            ((item,),) = policy.sample(prompts[:1], [[1]], SamplingOptions(4, temperature=temperature))
            assert not set(placeholders).intersection(item.ids)
    finally:
        handle.remove()


def test_policy_longer_limit_keeps_the_beginning(idefics3: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    short, long = (idefics3.sample(prompts, SEEDS, SamplingOptions(length)) for length in (4, 20))
    for first, second in zip(flat(prompts, short)[1], flat(prompts, long)[1], strict=True):
        assert second.ids[: len(first.ids)] == first.ids


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}], ids=str
)
def test_policy_greedy_options_agree(options: dict, idefics3: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    for item in flat(prompts, idefics3.sample(prompts, SEEDS, SamplingOptions(LENGTH, **options)))[1]:
        assert item.logprobs  # of the whole distribution, not of the one that was cut
        assert max(item.logprobs) < -1e-3
    greedy = idefics3.sample(prompts, SEEDS, SamplingOptions(LENGTH, temperature=0.0))
    other = idefics3.sample(prompts, SEEDS, SamplingOptions(LENGTH, **options))
    assert [[each.ids for each in settings] for settings in greedy] == [
        [entry.ids for entry in values] for values in other
    ]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.5}, {"temperature": 2}])
def test_policy_samples_follow_probabilities(
    options: dict, idefics3: AutoregressivePolicy, prompts: list[Prompt]
) -> None:
    count = 4000
    settings = SamplingOptions(1, **options)
    (drawn,) = idefics3.sample(prompts[:1], [list(range(count))], settings)
    with torch.no_grad():
        logits = idefics3.forward(prompts[:1], [(300,)]).logits(torch.tensor([0]))[0].double()
    logits[idefics3.model.config.image_token_id] = -math.inf
    expected = (logits / settings.temperature).softmax(-1)
    order = expected.argsort(descending=True)
    kept, mass = [], 0.0
    candidates = order.tolist()[: settings.top_k or None]
    needed = settings.top_p * float(expected[candidates].sum())
    for token in candidates:  # by hand: of the top_k tokens until the share top_p of their mass is reached
        if settings.top_p < 1.0 and mass >= needed:
            break
        kept.append(token)
        mass += float(expected[token])
    tokens = [item.ids[0] for item in drawn]
    assert set(tokens) <= set(kept)
    for token in kept[:3]:
        share = float(expected[token]) / mass
        # five standard deviations of a share of `count` draws
        assert abs(tokens.count(token) / count - share) <= 5 * math.sqrt(share * (1 - share) / count) + 1e-9


def with_stops(policy: AutoregressivePolicy, declared: object, end_token: str | None) -> AutoregressivePolicy:
    """The policy as it would load with other declarations of its end."""
    twin = policy.copy("student")
    twin.model.generation_config = GenerationConfig(eos_token_id=declared)
    before = policy.tokenizer.eos_token
    try:
        policy.tokenizer.eos_token = end_token
        return AutoregressivePolicy(twin.model, policy.processor, "student")
    finally:
        policy.tokenizer.eos_token = before


def test_policy_every_declared_end_token_ends_an_answer(idefics3: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    usual = flat(prompts, idefics3.sample(prompts, SEEDS, SamplingOptions(LENGTH)))[1]
    others = (usual[0].ids[2], usual[1].ids[4])
    several = with_stops(idefics3, list(others), "<end_of_utterance>")
    assert several.stop_ids == {*others, idefics3.tokenizer.eos_token_id}
    for before, item in zip(
        usual, flat(prompts, several.sample(prompts, SEEDS, SamplingOptions(LENGTH)))[1], strict=True
    ):
        assert item.ids == before.ids[: len(item.ids)]
        ends = [position for position, token in enumerate(before.ids) if token in several.stop_ids]
        assert len(item.ids) == (ends[0] + 1 if ends else LENGTH)
        assert item.finished == bool(ends)
        assert len(item.logprobs) == len(item.ids)


@pytest.mark.parametrize("evaluates", [False, True])
def test_policy_stop_string_ends_answer_with_its_token(
    evaluates: bool, idefics3: AutoregressivePolicy, prompts: list[Prompt]
) -> None:
    options = SamplingOptions(LENGTH, evaluates=evaluates)
    usual = flat(prompts, idefics3.sample(prompts, SEEDS, options))[1]
    texts = tuple("".join(idefics3.token_texts(usual[row].ids[at : at + 2])) for row, at in ((0, 2), (1, 4)))
    stopped = dataclasses.replace(options, stop_strings=texts)
    reasons = set()
    for before, item in zip(usual, flat(prompts, idefics3.sample(prompts, SEEDS, stopped))[1], strict=True):
        decoded = [idefics3.tokenizer.decode(list(before.ids[:count])) for count in range(1, len(before.ids) + 1)]
        ends = [count for count, text in enumerate(decoded, start=1) if any(stop in text for stop in texts)]
        assert item.ids == before.ids[: ends[0] if ends else None]
        assert item.logprobs == pytest.approx(before.logprobs[: len(item.ids)], abs=CLOSE)
        assert (item.finished, bool(item.stop_string)) == (bool(ends) or before.finished, bool(ends))
        assert (item.entropies is not None) == evaluates
        reasons.add(item.stop_string)
    assert set(texts) <= reasons


def test_policy_without_end_token_raises(idefics3: AutoregressivePolicy) -> None:
    with raises(PolicyError, "eos_token_id"):
        with_stops(idefics3, None, None)


def test_policy_pad_token_may_be_end_token(folders: dict, idefics3: AutoregressivePolicy, prompts: list) -> None:
    other = load_policy(folders["idefics3"], "student")
    other.tokenizer.pad_token = other.tokenizer.eos_token
    completions = [(300, other.tokenizer.eos_token_id), (301,), (302, 303, other.tokenizer.eos_token_id)]
    assert other.encoder.pad_id == other.tokenizer.eos_token_id
    first, second = (logprobs(policy, prompts, completions) for policy in (other, idefics3))
    assert torch.allclose(first, second, atol=CLOSE)  # the end token is scored as any other


@pytest.mark.parametrize(
    "text", ["red circle", "naïve café", "日本語 text", "🙂🙃", "a\tb\n c  d", "<end_of_utterance", "\ufffd end"]
)
def test_token_texts_join_to_the_text(text: str, idefics3: AutoregressivePolicy) -> None:
    ids = idefics3.answer_ids(text)
    texts = idefics3.token_texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text + "<end_of_utterance>"
    assert idefics3.text(ids) == text


def test_token_texts_of_cut_character_keep_every_token(idefics3: AutoregressivePolicy) -> None:
    whole = idefics3.answer_ids("ab🙂")[:-1]
    for length in range(1, len(whole) + 1):
        texts = idefics3.token_texts(whole[:length])
        assert len(texts) == length
        assert "".join(texts) == idefics3.tokenizer.decode(list(whole[:length]))


def test_answer_ids_of_special_tokens_raise(idefics3: AutoregressivePolicy) -> None:
    for token in ("<image>", "<end_of_utterance>"):
        with raises(DataError, f'"{token}"'):
            idefics3.answer_ids(f"red {token} blue")
    assert idefics3.answer_ids("red")[-1] == idefics3.tokenizer.eos_token_id


def test_policy_without_completions_has_no_hidden_states(idefics3: AutoregressivePolicy, prompts: list[Prompt]) -> None:
    assert idefics3.forward(prompts, [(), (), ()]).hidden.shape == (0, 32)
    some = idefics3.forward(prompts, [(300, 301), (), (302,)])
    assert some.hidden.shape == (3, 32)


def test_policy_copy_is_frozen(folders: dict, prompts: list[Prompt]) -> None:
    student = load_policy(folders["idefics3"], "student")
    start = student.copy("student@start")
    before = logprobs(start, prompts[:1], [(300, 301)])
    student.model.requires_grad_(True)
    with torch.no_grad():
        next(iter(student.model.parameters())).mul_(3.0)
    assert torch.equal(logprobs(start, prompts[:1], [(300, 301)]), before)
    assert not any(parameter.requires_grad for parameter in start.model.parameters())
