"""Settings of stream, training and monitors: fields with meaning, unit and origin; imports nothing of ours."""
