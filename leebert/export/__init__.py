"""Export a saved model as ONNX segments between exits: trace, quantise, measure, choose segments and calibrate."""
