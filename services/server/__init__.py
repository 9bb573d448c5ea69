"""The process: its start, workers, reloads, logs, metrics, jobs and embedded store."""
