"""Runs on disk and as processes: folder, checkpoints, jobs and queue."""
