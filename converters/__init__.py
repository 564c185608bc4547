"""Keras and ONNX files to torch modules and ONNX models; knows nothing of MPC."""
