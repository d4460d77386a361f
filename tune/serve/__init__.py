"""Serving exported models on Ray Serve: dynamic batching, limits, and a speed-up that adapts to the load.

Neither the server nor its replicas import torch or transformers.
"""
