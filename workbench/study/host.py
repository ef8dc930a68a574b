"""The process that workers of a study are forked from: torch, transformers and the workbench are imported here, once.

It trains nothing and starts no thread. It has a process group of its own and minds no SIGTERM: what a terminal or a
service manager sends is for the study's process, which tells the workers. It ends with that process.
"""

import os
import signal

from workbench.study import work

os.setpgid(0, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)

__all__ = ["work"]
