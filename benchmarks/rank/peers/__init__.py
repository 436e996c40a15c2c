"""What others build for the same task, each a program of its own: features from a store, scores from ONNX Runtime, no front end at all.

The programs import nothing of Millstream: Feast lives in .venv-feast, whose redis-py is older than ours.
"""
