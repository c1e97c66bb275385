"""The command line: parses, calls, prints."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from navprune import __version__
from navprune.cli import agents, measuring, pruning, scenes
from navprune.cli.parsers import Parser
from navprune.errors import UserError
from navprune.machine import heed_quota
from navprune.rl.stopping import heed_ctrl_c

# Every command imports what it needs when it runs, so that --help answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 or what the command returns, 2 for mistakes, 130 after Ctrl-C."""
    parser = make_parser()
    options = parse(parser, arguments)
    heed_quota()
    heed_ctrl_c()
    try:
        result = options.run(options)
        answer, status = result if isinstance(result, tuple) else (result, 0)
        if options.json is not None and answer is not None:
            from navprune.files import json_bytes, write_file

            write_file(options.json, json_bytes(answer))
    except UserError as error:
        print(f"navprune: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"navprune: {error.filename or 'a file'}: {error.strerror}; check disk and permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("navprune: interrupted", file=sys.stderr)
        return 130
    return status


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command; key=value may stand anywhere, which argparse alone allows only in one place."""
    options, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if text.startswith("-") or not hasattr(options, "settings")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        options.settings = [*options.settings, *rest]
    for name, value in vars(options).items():
        if isinstance(value, Path):  # a shell leaves --data=~/data as it is
            setattr(options, name, Path(os.path.expanduser(value)))
    return options


def make_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(
        prog="navprune",
        description="PointNav agents with slim visual encoders: train, prune, and measure SPL and milliseconds.",
        epilog="`navprune COMMAND --help` explains a command. `navprune demo` shows everything in miniature.",
    )
    parser.add_argument("--version", action="version", version=f"navprune {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for room in (scenes, agents, pruning, measuring):
        room.add_commands(commands)
    return parser
