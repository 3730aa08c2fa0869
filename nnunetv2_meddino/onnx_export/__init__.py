"""A trained model for runtimes without torch: ONNX files of its networks, and what must be known to use them."""
