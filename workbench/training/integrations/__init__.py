"""Record what other trainers sample while they train, as runs of the workbench.

trl.py         TRL's GRPO, RLOO and distillation trainers
trl_rows.py    rows of their datasets and what they sampled -> RolloutRow, Example
trl_models.py  their models -> policies
"""
