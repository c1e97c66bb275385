"""What the commands' parsers share."""

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from navprune.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose help may end in text that takes a while to gather."""

    late: Callable[[], str] | None = None

    def format_help(self) -> str:
        """The usual help, with the late text behind it."""
        return super().format_help() + (f"\n{self.late()}\n" if self.late else "")


def command(commands: Any, name: str, run: Callable[[argparse.Namespace], Any], example: str) -> Parser:
    """Add a command whose parser takes --json; the docstring of `run` is its help, the first line for the list.

    `run(options)` returns what --json writes, or that and the exit status.
    """
    text = inspect.getdoc(run) or ""
    first, epilog = text.partition("\n")[0].replace("%", "%%"), f"example:\n  {example}"
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=first, description=text, epilog=epilog, formatter_class=raw)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there for programs to read")
    parser.set_defaults(run=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add --config and key=value."""
    text = "recipe of habitat_configs/ by name, or a YAML file"
    fallback = default or "the checkpoint's own, else pointnav"
    parser.add_argument("--config", metavar="NAME", default=default, help=f"{text} (default: {fallback})")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="changes to the configuration, e.g. ppo.lr=1e-4"
    )


def field_texts(config: type) -> dict[str, str]:
    """What the source says of each field of a dataclass, inherited ones too: the first paragraph below it."""
    texts: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for item, below in pairwise(tree.body):
            if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = inspect.cleandoc(ast.literal_eval(below.value))
                texts[ast.unparse(item.target)] = " ".join(text.split("\n\n")[0].split())
    return texts


def given(options: argparse.Namespace, taker: Callable[..., Any], **instead: Any) -> dict[str, Any]:
    """Return arguments for `taker`: options that have a value and the name of a parameter, with others `instead`."""
    names = inspect.signature(taker).parameters
    return {name: value for name, value in vars(options).items() if name in names and value is not None} | instead


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers of at least 1, parted by commas; UserError else, naming the option."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} takes whole numbers such as 1,8, not {text}")
    return numbers


def natural(text: str) -> int:
    """For argparse: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if natural(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    """For argparse: a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to 1")
    return number


def note(line: str) -> None:
    """Tell the user what is going on, beside the result on standard output."""
    print(line, file=sys.stderr, flush=True)
