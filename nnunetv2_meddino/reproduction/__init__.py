"""The ablation of the paper at a scale that anyone can run: pretraining, fine-tuning, one report."""
