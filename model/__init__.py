"""mcjepa model: pixels to pyramid, flow, embeddings and one scalar loss (torch, numpy, safetensors only)."""
