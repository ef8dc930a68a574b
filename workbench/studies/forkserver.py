"""Process that a study's workers are forked from. It imports torch, transformers and the workbench once.

It does not train and uses no device. It has its own process group and ignores SIGINT and SIGTERM: the study's process
handles them and stops the workers. It exits after that process and its workers.
"""

import os
import signal

os.setpgid(0, 0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

from workbench.studies import worker as work  # noqa: E402  (slow, so after the signals are ignored)

__all__ = ["work"]
