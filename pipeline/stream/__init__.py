"""Which sample comes when, and its pixels; knows neither torch.distributed nor the engine."""
