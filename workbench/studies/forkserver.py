"""The process that workers of a study are forked from: torch, transformers and the workbench are imported here, once.

It trains nothing and asks no device. It has a process group of its own and minds no signal that asks to stop: what a
terminal or a service manager sends is for the study's process, which tells the workers. It ends when that process and
its workers have.
"""

import os
import signal

os.setpgid(0, 0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

from workbench.studies import worker as work  # noqa: E402  (takes seconds, in which somebody may press Ctrl-C)

__all__ = ["work"]
