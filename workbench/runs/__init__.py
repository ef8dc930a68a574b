"""A run on disk and as a process: its folder, checkpoints, jobs and queue."""
