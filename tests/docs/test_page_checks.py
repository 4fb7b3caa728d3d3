"""The checks of the pages find what they are for: commands, keys, brackets and links that are wrong, and no others."""

from __future__ import annotations

import pytest

from tests.docs.commands import CommandError, check, commands_in, expand
from tests.docs.pages import AFTER_QUICKSTART, RUN_MARK, anchors, blocks, commands_of_tables, links, spans

PAGE = """# A page

Text with `mcjepa train RECIPE` and [a link](other.md#part).

<!-- run -->
```sh
mcjepa prep plan    RECIPE   # it's a comment
FOO=1 .venv/bin/mcjepa train \\
    RECIPE --ranks 2 && mcjepa eval all RECIPE | tail
```

| `mcjepa prep plan\\|run RECIPE` | and ``[not](a-link)`` |

## Guards, meters & `so` on
"""


def test_commands_are_found_in_shell_text() -> None:
    block = next(blocks("page", PAGE))
    assert block.mark == RUN_MARK and block.line == 6 and block.language == "sh"
    assert list(commands_in(block.text)) == [
        ["prep", "plan", "RECIPE"],
        ["train", "RECIPE", "--ranks", "2"],
        ["eval", "all", "RECIPE"],
    ]


def test_inline_code_links_and_headings_are_found() -> None:
    assert [span.text for span in spans("page", PAGE)][:2] == ["mcjepa train RECIPE", "mcjepa prep plan|run RECIPE"]
    assert list(links(PAGE)) == [(3, "other.md#part")]
    assert anchors(PAGE) == {"a-page", "guards-meters-so-on"}


def test_commands_of_marked_tables_are_found() -> None:
    table = "| `mcjepa a b` | `c` |\n| words | |\n| `mcjepa d` | |\n\n| `no` | |\n"
    assert commands_of_tables(f"| `no` | |\n\n{AFTER_QUICKSTART}\n\n| x | y |\n|---|---|\n{table}") == [
        "mcjepa a b",
        "mcjepa d",
    ]


@pytest.mark.parametrize(
    ("synopsis", "commands"),
    [
        ("quickstart --out DIR [--videos DIR]", ["quickstart --out DIR --videos DIR"]),
        ("prep plan|run RECIPE [key=value …]", ["prep plan RECIPE", "prep run RECIPE"]),
        ("eval flow|… WEIGHTS", ["eval flow WEIGHTS"]),
        ("eval compare [LABEL=]DIR …", ["eval compare LABEL=DIR"]),
        ("infer WEIGHTS INPUT... --out DIR", ["infer WEIGHTS INPUT --out DIR"]),
        ("eval probe W seeds=[0,1,2]", ["eval probe W seeds=[0,1,2]"]),
    ],
)
def test_a_synopsis_becomes_commands(synopsis: str, commands: list[str]) -> None:
    assert [" ".join(words) for words in expand(synopsis.split())] == commands


@pytest.mark.parametrize(
    "command",
    [
        "train RECIPE --ranks N train.steps=10",
        "quickstart --out DIR train.steps=3000",
        "eval flow WEIGHTS --data ROOT --set NAME max_pairs=4 device=cpu",
        "eval classify WEIGHTS --data ROOT --set imagefolder levels=[5,6]",
        "prep run sample data=ROOT",
    ],
)
def test_right_commands_pass(command: str) -> None:
    check(command.split(), whole=True)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("train RECIPE --rangs 2", "unrecognized arguments"),
        ("trian RECIPE", "invalid choice"),
        ("train RECIPE train.stepps=10", "did you mean 'train.steps'"),
        ("train RECIPE train.checkpoint.keep=3", "unknown key"),
        ("train RECIPE train.steps=many", "train.steps"),
        ("train no-such-recipe", "no shipped recipe"),
        ("train", "required"),
        ("eval flow WEIGHTS --data ROOT --set NAME max_pears=4", "max_pairs"),
        ("eval flow WEIGHTS --data ROOT --set NAME --head knn", "unrecognized"),
    ],
)
def test_wrong_commands_are_refused(command: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        check(command.split(), whole=True)


def test_a_mention_may_lack_arguments_but_not_be_wrong() -> None:
    check(["prep", "run"], whole=False)
    with pytest.raises(CommandError, match="invalid choice"):
        check(["prep", "rum"], whole=False)
