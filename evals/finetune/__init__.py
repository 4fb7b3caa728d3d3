"""Fine-tuning with UperNet: settings, data, training, score."""
