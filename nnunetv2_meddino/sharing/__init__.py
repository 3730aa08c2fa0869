"""Trained models and backbones sent to a Hugging Face repository, with a card, and fetched from there."""
