"""Packed rows give the loss of their questions one by one."""

import pytest
import torch
import torch.nn.functional as F

from data.smolvlm_packing import Document, collate, forward_packed, image_features, pack
from workbench.data.contexts import build_prompt
from workbench.data.scenes import make_examples
from workbench.policies.autoregressive import AutoregressivePolicy, load_policy
from workbench.training.pretraining.batches import LessonEncoder


@pytest.fixture(scope="module")
def policy() -> AutoregressivePolicy:
    return load_policy("data/models/student", "student")


def documents() -> list[Document]:
    """Two questions about one scene, one about a scene and its crop, and one without an image."""
    first, second, third = make_examples("eval", count=3)
    pairs = ((first.question, first.reference), ("what shape is the red object?", "at top left, answer star"))
    with_crop = build_prompt(second, "crop")
    return [
        Document(first.images, pairs),
        Document(with_crop.images, ((with_crop.text, second.reference),)),
        Document((), ((third.question, third.reference),)),
    ]


@torch.no_grad()
def alone(policy: AutoregressivePolicy, document: Document, pair: tuple[str, str]) -> torch.Tensor:
    """Log-probs of the answer's tokens when the model reads this question only."""
    encoder = LessonEncoder(policy)
    (row,) = pack([Document(document.images, (pair,))], encoder, image_end=image_end(policy), length=1000)
    inputs = {"input_ids": torch.tensor([row.ids])}
    if document.images:
        inputs["pixel_values"] = torch.stack([encoder.pixels(image) for image in document.images])[None]
    logits = policy.model(**inputs).logits[0, :-1].log_softmax(-1)
    answer = torch.tensor(row.labels[1:])
    return logits[answer >= 0].gather(-1, answer[answer >= 0, None])[:, 0]


def image_end(policy: AutoregressivePolicy) -> int:
    return policy.tokenizer.convert_tokens_to_ids("<fake_token_around_image>")


@pytest.mark.parametrize("length", [60, 1000])
@torch.no_grad()
def test_packed_rows_score_as_questions_alone(policy: AutoregressivePolicy, length: int) -> None:
    encoder, given = LessonEncoder(policy), documents()
    rows = pack(given, encoder, image_end=image_end(policy), length=length)
    assert len(rows) == {60: 3, 1000: 1}[length]
    batch = collate(rows, encoder)
    hidden = forward_packed(policy.model, batch, image_features(policy.model, batch.pixels))
    logits = policy.model.lm_head(hidden)[:, :-1].flatten(0, 1)
    losses = F.cross_entropy(logits, batch.labels[:, 1:].flatten(), ignore_index=-1, reduction="none")
    packed = -losses[batch.labels[:, 1:].flatten() >= 0]
    expected = torch.cat([alone(policy, document, pair) for document in given for pair in document.pairs])
    assert sorted(packed.tolist()) == pytest.approx(sorted(expected.tolist()), abs=1e-4)
