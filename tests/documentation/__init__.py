"""Every fenced command and sample of README and docs, tried on small data, dry where it needs more than that."""
