"""`python -m mcjepa.pipeline.cli`: the same as the console script `mcjepa`, for launchers that start Python."""

from mcjepa.pipeline.cli.main import main

raise SystemExit(main())
