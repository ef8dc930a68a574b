"""Thread-safe cache of the most recently used results."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Result = TypeVar("Result")


class LRUCache:
    """LRU cache of `size` results. Threads may share it; two that miss the same key at once both compute it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get_or_compute(self, question: Hashable, read: Callable[[], Result]) -> Result:
        """Return the cached result of `question`, or compute it with `read()`."""
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
