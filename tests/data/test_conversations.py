"""Turns in every form in which tables keep them: the same question, history and reference, or a refusal."""

import json
from collections import Counter

import pytest
from failures import raises

from workbench.data.conversations import Refused, plain_text, split_conversation, split_history

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "<image>Which colour isn't it?"},
    {"role": "assistant", "content": 'It is "red".\nSure.'},
]
SHARED = [
    {"from": "system", "value": "Be short."},
    {"from": "human", "value": "<image>\nWhich colour isn't it?"},
    {"from": "gpt", "value": 'It is "red".\nSure.'},
]
PARTS = [
    TURNS[0],
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour isn't it?"}]},
    TURNS[2],
]
FORMS = {
    "turns": TURNS,
    "JSON": json.dumps(TURNS),
    "JSON, indented": json.dumps(TURNS, indent=2),
    "JSON of JSON": json.dumps(json.dumps(TURNS)),
    "Python": repr(TURNS),
    "Python tuple": repr(tuple(TURNS)),
    "from and value": SHARED,
    "from and value, JSON": json.dumps(SHARED),
    "from and value, Python": repr(SHARED),
    "a JSON text for each turn": [json.dumps(turn) for turn in TURNS],
    "wrapped": {"messages": TURNS},
    "wrapped, JSON": json.dumps({"messages": TURNS}),
    "a column for each key": {"role": [t["role"] for t in TURNS], "content": [t["content"] for t in TURNS]},
    "parts": PARTS,
    "parts, JSON": json.dumps(PARTS),
    "parts kept as text": [
        {**turn, "content": json.dumps(turn["content"])} if turn is PARTS[1] else turn for turn in PARTS
    ],
    "parts without types": [
        TURNS[0],
        {"role": "user", "content": [{"image": None, "text": "Which colour isn't it?"}]},
        TURNS[2],
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_split_conversation_every_form_is_equal(form):
    conversation = split_conversation(FORMS[form], notes := Counter())
    assert conversation.question == "Which colour isn't it?"
    assert conversation.history == (("system", "Be short."),)
    assert conversation.reference == 'It is "red".\nSure.'
    assert conversation.num_image_marks == (0 if form == "parts without types" else 1)
    assert (notes["turns kept as text were parsed"] == 1) == isinstance(FORMS[form], str)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TURNS)[:-5],
        repr(TURNS).replace("}, {", "}\n {"),  # as numpy writes lists of turns, without commas
        "[{'role': 'user', 'content': array(['x'])}]",
        json.dumps(TURNS) + " and more",
        '{"role": "user", "content": "cut',
    ],
)
def test_split_conversation_broken_turns_as_text_raise(text):
    with raises(Refused, "JSON"):
        split_conversation(text, Counter())


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nred", "[INST] Q? [/INST] red", "<start_of_turn>user\nQ?"],
)
def test_split_conversation_chat_template_in_text_raises(text):
    with raises(Refused, "chat template"):
        split_conversation(text, Counter())


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3] has which sum?",
        '{"colour": "red"} is what?',
        "[A] red [B] blue: which role does the content play?",
        '["a", "b"]',
        "What does 'role': in {'role': 'user'} mean?",
    ],
)
def test_split_conversation_text_with_brackets_is_question(text):
    assert split_conversation(text, Counter()).question == text


def test_plain_text_of_stored_completion_is_answer():
    assert plain_text(json.dumps([{"role": "assistant", "content": "It is red."}]), Counter()) == "It is red."


def test_split_conversation_finds_images_in_parts():
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image", "path": "a.png"},
        {"image": "b.png"},
        {"text": "Q?"},
    ]
    conversation = split_conversation([{"role": "user", "content": parts}], Counter())
    assert conversation.images == ({"url": "data:image/png;base64,AA=="}, "a.png", "b.png")
    assert (conversation.question, conversation.num_image_marks) == ("Q?", 3)


@pytest.mark.parametrize(
    "history",
    [
        [["Hello", "Hi"]],
        [{"role": "user", "text": "Hello"}, {"role": "assistant", "text": "Hi"}],
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
        '[["Hello", "Hi"]]',
    ],
)
def test_split_history_every_form_is_equal(history):
    assert split_history(history, Counter()) == (("user", "Hello"), ("assistant", "Hi"))


def test_split_history_of_other_form_raises():
    with raises(Refused, "history", "list"):
        split_history("yesterday", Counter())
