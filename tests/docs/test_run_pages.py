"""The walk over the pages: what it finds, and that a command that fails is told."""

from __future__ import annotations

from pathlib import Path

from tests.docs.run_pages import Runnable, run, runnables

PAGE = """
<!-- run -->
```sh
echo one > one.txt
```

```sh
echo never > never.txt
```

<!-- run after quickstart -->
```python
open("two.txt", "w").write("two")
```

<!-- run after quickstart -->

| command | does |
|---|---|
| `mcjepa recipe quickstart` | prints |
"""


def test_marked_blocks_and_rows_are_found_in_order_and_no_others() -> None:
    found = runnables({"a.md": PAGE})
    assert [each.place for each in found] == ["a.md:3", "a.md:12", "a.md: recipe"]
    assert [each.language for each in found] == ["sh", "python", "sh"]
    assert found[2].text == "mcjepa recipe quickstart"


def test_blocks_run_in_the_folder_with_the_environments_programs_and_failures_are_seen(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mcjepa").write_text("#!/bin/sh\necho ours $1 > said.txt\n")
    (programs / "mcjepa").chmod(0o755)
    first, _, row = runnables({"a.md": PAGE})
    assert run(first, tmp_path, programs) == 0 and (tmp_path / "one.txt").read_text() == "one\n"
    assert run(row, tmp_path, programs) == 0 and (tmp_path / "said.txt").read_text() == "ours recipe\n"
    assert run(Runnable("x", "sh", "false\ntrue"), tmp_path, programs) == 1
