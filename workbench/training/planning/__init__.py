"""`workbench plan`: memory, operations and time of a run by phase, before any weight is read or device rented.

    config -> models.py (fake weights) -> prompts.py (shapes of a step) -> phases.py (dry run) -> remedies.py, report.py

The passes of the plan are those of the run itself, on tensors without numbers (dry_run.py).
"""
