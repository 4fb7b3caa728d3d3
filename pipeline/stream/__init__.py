"""The stream: which sample comes k-th, and its pixels; knows neither torch.distributed nor the engine."""
