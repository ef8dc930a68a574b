"""Supervise a part of each answer alone: the thinking of a thinking model, or what follows it.

Thinking reaches from the first marker to the second one, both included, or to the end of an answer that is truncated
in it. Where a chat template opens it in the prompt, thinking begins with the answer, which has the second marker alone,
or none if it is truncated. Any other answer without markers is all answer.
Positions outside the part are in the regime `outside`, which has no losses.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from workbench.distill.method import Method, Regime
from workbench.errors import ConfigError
from workbench.types import Rollout, RouteBatch, Routing

PARTS = ("all", "thinking", "answer")
OUTSIDE = "outside"


def supervise_part(method: Method, part: str, markers: tuple[str, str]) -> Method:
    """The method, restricted to one of PARTS. Raises ConfigError if it has a regime of that name already."""
    if part == PARTS[0]:
        return method
    if OUTSIDE in method.regimes:
        raise ConfigError(f'method {method.name} has a regime "{OUTSIDE}" of its own. Set training.supervise=all.')
    regimes = {**method.regimes, OUTSIDE: Regime((), f"outside the supervised part ({part}): no loss")}
    route, index = method.route, len(method.regimes)

    def route_part(batch: RouteBatch) -> Routing:
        routing = route(batch)
        inside: list[bool] = []
        for rollout in batch.rollouts:
            thinks = is_thinking(batch.token_texts(rollout.ids), markers, rollout.answer_prefix)
            inside += [flag == (part == "thinking") for flag in thinks]
        outside = ~torch.tensor(inside, dtype=torch.bool, device=routing.regime.device)
        return replace(
            routing,
            regime=routing.regime.masked_fill(outside, index),
            weight=routing.weight.masked_fill(outside, 0.0),
        )

    return replace(method, regimes=regimes, route=route_part)


def is_thinking(texts: list[str], markers: tuple[str, str], prefix: str = "") -> list[bool]:
    """Whether each token belongs to the thinking, from the tokens' texts, which joined are the answer.

    prefix  text that the prompt puts before the answer
    """
    text, (opening, closing) = "".join(texts), markers
    start, end = text.find(opening), text.find(closing)
    if start < 0 and end < 0:
        return [prefix.rfind(opening) > prefix.rfind(closing)] * len(texts)
    if end >= 0 and not 0 <= start < end:
        start = 0
    stop = len(text) if end < 0 else end + len(closing)
    flags, position = [], 0
    for token in texts:
        flags.append(position < stop and position + max(1, len(token)) > start)
        position += len(token)
    return flags


def count_thinking(
    rollouts: Iterable[Rollout], token_texts: Callable[[tuple[int, ...]], list[str]], markers: tuple[str, str]
) -> tuple[int, int]:
    """Number of answers that have thinking, and of those that end inside of it."""
    thinking = unfinished = 0
    for rollout in rollouts:
        texts = token_texts(rollout.ids)
        flags = is_thinking(texts, markers, rollout.answer_prefix)
        thinking += any(flags)
        unfinished += any(flags[-1:]) and markers[1] not in "".join(texts)
    return thinking, unfinished
