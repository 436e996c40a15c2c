"""From served rows and their labels to a trained model, its quality and its ONNX form."""
