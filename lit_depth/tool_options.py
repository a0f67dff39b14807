"""Options of the commands about files that import models, by themselves: help and a wrong option are quick."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from lit_depth.commands import tools
from lit_depth.results.changed_samples import MOST
from lit_depth.results.page import PAGE
from lit_depth.studies.shared.dashboards import add_arguments

_COLUMNS = Path(__file__).parent / "data" / "columns.py"


def parser_of(tool: str) -> argparse.ArgumentParser:
    """The parser of ``data``, ``ingest`` or ``report``.

    >>> parser_of("report").parse_args(["results", "--samples", "3"]).samples
    3
    """
    parser = argparse.ArgumentParser(prog=f"lit-depth {tool}", description=tools()[tool])
    {"data": _data, "ingest": _ingest, "report": _report}[tool](parser)
    return parser


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help=".jsonl, .json, .csv, .tsv, .parquet, .arrow, a folder of them, or a hub id")
    several_columns = _constant("SEVERAL")
    for name in _constant("_USUAL"):
        several = " (or several, separated by commas)" if name in several_columns else ""
        parser.add_argument(
            f"--columns.{name}", metavar="NAME", help=f"column of the {name}{several}; null = there is none"
        )
    parser.add_argument("--metric", help="in place of the one that is guessed")
    parser.add_argument("--allow_outside", action="store_true", help="read images from outside of the folder too")
    parser.add_argument("--checkpoint", help="model whose prompts are shown (default: the bundled one)")
    parser.add_argument("--num_samples", type=int, metavar="N", help="questions per split (default: all)")
    parser.add_argument("--output_dir", default="results", metavar="DIR", help="where the page goes (default: results)")


def _ingest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="per-sample results of one or several exported models: samples_*.jsonl of lm-eval, *_samples_*.jsonl of "
        "lmms-eval (--log_samples), logs of Inspect (.eval, .json), or folders of these (the newest of each task)",
    )
    parser.add_argument("--whole", nargs="+", metavar="FILE", help="the same of the whole model")
    parser.add_argument("--run", metavar="DIR", help="folder of our run with records of the mask, results/compare/NAME")
    parser.add_argument(
        "--mask",
        nargs="+",
        metavar="BITS",
        help="1 = the block stays, one mask for each exported model, in the order "
        "of the files (default: that of certificate.json in the checkpoint's folder, as the log names it)",
    )
    parser.add_argument(
        "--skip",
        nargs="+",
        type=int,
        action="append",
        metavar="BLOCK",
        help="the same by the removed blocks; once for each exported model",
    )
    parser.add_argument("--checkpoint", nargs="+", metavar="DIR", help="the same by the exported folders")
    parser.add_argument("--metric", help="in place of our run's, or of the log's first")
    parser.add_argument("--filter", help="of lm-eval and lmms-eval, such as flexible-extract or none")
    parser.add_argument("--task", metavar="NAME", help="the task of --run that the files are of, where names differ")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.02,
        metavar="D",
        help="difference between their drop and ours, 0 to 1, up to which ours is confirmed (default: 0.02)",
    )
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of all intervals (default: 0.95)")
    parser.add_argument("--output_dir", default="results", metavar="DIR", help="results go to DIR/ingest/NAME/")
    parser.add_argument("--name", default="default", help="of the results (default: default)")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="DIR",
        help="folders of runs, such as results/compare/default, or folders above them, such as results",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"the page (default: {PAGE} in the folder of the only run, which takes the place of the page that its "
        f"command wrote; of several runs {PAGE} in the working folder)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=MOST,
        metavar="N",
        help=f"changed samples that are shown of each mask, 0 to {MOST} (default: {MOST})",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="SHARE", help="of the tests between models (default: 0.95)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_arguments(parser)


def _constant(name: str) -> Any:
    """A constant of the module about columns, read from its source: importing it takes seconds."""
    tree = ast.parse(_COLUMNS.read_text(encoding="utf-8"))
    values = (node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name)
    return ast.literal_eval(next(values))
