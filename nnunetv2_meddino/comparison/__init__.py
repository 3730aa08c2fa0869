"""Trained methods side by side: scores with intervals and tests, costs, and what makes a comparison unfair."""
