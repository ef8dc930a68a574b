"""Answers to the questions that were asked last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

Result = TypeVar("Result")


class Memory:
    """The last `size` answers. Safe to share between threads; two that ask at once may both read."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, question: Hashable, read: Callable[[], Result]) -> Result:
        """The answer to a question, by `read()` if it is not known."""
        with self._lock:
            if question in self._answers:
                self._answers.move_to_end(question)
                return self._answers[question]
        answer = read()
        with self._lock:
            self._answers[question] = answer
            while len(self._answers) > self._size:
                self._answers.popitem(last=False)
        return answer
