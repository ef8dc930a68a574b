"""The methods as a form offers them: in groups, with the first line of each docstring."""

import functools

from workbench.methods import list_methods, load_method, method_module

WITH_TEACHER, SELF, CONTROLS, OTHER = "on-policy with a teacher", "self-distillation", "controls", "other"
GROUPS = (WITH_TEACHER, SELF, CONTROLS, OTHER)


def method_sentence(name: str) -> str:
    """The first line of a method's docstring; "" for an unknown method."""
    return (method_module(name).__doc__ or "").splitlines()[0] if name in list_methods() else ""


@functools.cache
def uses_teacher(name: str) -> bool:
    """Whether a teacher scores one of a method's views; True for an unknown method."""
    if name not in list_methods():
        return True
    return any(view.policy.startswith("teacher") for view in load_method(name).views.values())


def method_group(name: str) -> str:
    """Group of a method: a control by its docstring; else by the policies of its views and what they score."""
    method = load_method(name)
    scorers = {view.policy for view in method.views.values() if not view.learns}
    if "control" in method_sentence(name):
        return CONTROLS
    if method.dataset_fraction == 1.0 or method.min_learners > 1:  # nothing is sampled, or students teach each other
        return OTHER
    if uses_teacher(name):
        return WITH_TEACHER
    return SELF if scorers else OTHER


@functools.cache
def method_choices() -> tuple[tuple[str, str], ...]:
    """Every method as (label, name), group by group; a label has the name, the group and the sentence."""
    names = sorted(list_methods(), key=lambda name: (GROUPS.index(method_group(name)), name))
    return tuple((f"{name}  ·  {method_group(name)}  ·  {method_sentence(name)}", name) for name in names)
