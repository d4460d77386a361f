"""Run exported models with ONNX Runtime, tokenizers and NumPy: no torch, transformers, Ray, pandas or pydantic."""
