"""The tasks: one file per family. `data/task.py` says what a task is, `data/registry.py` finds one by its name."""
