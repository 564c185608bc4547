"""The lowerings of the ONNX ops, by family."""
