"""ONNX to a program: static ops, number formats, ranges; knows no engine and compiles no kernel."""
