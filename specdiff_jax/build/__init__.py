"""From configs to running parts: the only readers of configs."""
