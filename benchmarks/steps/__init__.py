"""Whole training steps: what is measured (`setting`), by whom (`plain`, `ours`), whether they agree (`agreement`)."""
