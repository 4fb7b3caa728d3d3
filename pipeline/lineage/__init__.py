"""Where a run, weights, scores or a dataset come from, and what two of them differ in; reads files, changes none."""
