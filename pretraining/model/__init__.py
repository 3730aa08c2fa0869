"""The networks of DINOv3 pretraining: student, EMA teacher and Gram teacher around the plugin's own ViT."""
