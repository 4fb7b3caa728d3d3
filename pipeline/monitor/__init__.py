"""Watches a step and never changes it: meters, guards, watchdog, profiler."""
