"""`python -m pipeline.cli`: the same as the console script `mcjepa`, for launchers that start Python."""

from pipeline.cli.main import main

raise SystemExit(main())
