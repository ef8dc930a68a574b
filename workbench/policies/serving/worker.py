"""Ends a worker process of vLLM with its server, however that ends.

vLLM's own workers notice the end of their server only once they have loaded, and not while they hang. A worker imports
this module when it starts (`worker_extension_cls`). Elsewhere, without WORKBENCH_VLLM_WORKERS, importing it does
nothing.
"""

import ctypes
import multiprocessing
import os
import signal
import sys

from workbench.policies.serving.addresses import WORKERS

_PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent has ended


class EndsWithServer:
    """Adds nothing to vLLM's worker: it names this module."""


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends; outside of Linux nothing changes."""
    parent = multiprocessing.parent_process()
    if WORKERS not in os.environ or parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it has ended already
        os._exit(1)


end_with_parent()
