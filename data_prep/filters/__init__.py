"""Filters: what is measured on every sample, which samples are dropped for it, and which inputs repeat others."""
