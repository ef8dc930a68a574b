"""The methods as the form offers them."""

from workbench.app.method_choices import CONTROLS, GROUPS, OTHER, SELF, WITH_TEACHER, method_choices, method_group
from workbench.methods import list_methods


def test_method_group_follows_from_views_and_docstring() -> None:
    groups = {
        WITH_TEACHER: ("opd", "dopd", "gkd", "mopd"),  # gkd samples half of its sequences
        SELF: ("opsd", "sdpo", "vision_opd", "d_opsd"),
        CONTROLS: ("grpo", "opsa", "gap_mask", "random_mask"),
        OTHER: ("lm_kd", "opcod", "spd"),  # nothing is sampled; peers; the views of the student alone
    }
    for group, names in groups.items():
        assert {name: method_group(name) for name in names} == dict.fromkeys(names, group)


def test_method_choices_every_method_in_its_group_with_a_sentence() -> None:
    labels = {name: label.split("  ·  ") for label, name in method_choices()}
    assert sorted(labels) == list(list_methods())
    assert all(head == name and text.endswith(".") for name, (head, _, text) in labels.items())
    order = [GROUPS.index(group) for _, group, _ in labels.values()]
    assert order == sorted(order), "methods of a group stand together"
