"""The options of `qdq check`, in groups."""

from __future__ import annotations

import click

from qdq.cli.check_codes import ALL_CODES
from qdq.cli.check_printers import PRINTERS
from qdq.cli.options import OUTPUT_FILE, PATH, combine_options, force_option

#: Adds ``--select``, ``--ignore``, ``--baseline`` and ``--write-baseline``.
selection_options = combine_options(
    click.option(
        "--select",
        multiple=True,
        metavar="CODE",
        help="Report only these codes or severities; comma-separated or repeated.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="CODE",
        help="Do not report these codes or severities; comma-separated or repeated.",
    ),
    click.option(
        "--baseline", type=PATH, metavar="FILE", help="Do not report the findings in this file."
    ),
    click.option(
        "--write-baseline",
        type=OUTPUT_FILE,
        metavar="FILE",
        help="Write the findings to a file for --baseline instead of reporting them.",
    ),
)

#: Adds ``--fix``, where its files go, and ``--diff``.
fix_options = combine_options(
    click.option(
        "--fix",
        is_flag=True,
        help="First fix, in place, what has one correct fix: "
        "formats, and pairs whose scales are in the model.",
    ),
    click.option(
        "-o",
        "--output",
        type=OUTPUT_FILE,
        metavar="OUT",
        help="With --fix: write the fixed model here.",
    ),
    click.option(
        "--out-dir",
        type=PATH,
        metavar="FOLDER",
        help="With --fix: write the fixed models into this folder, under their names.",
    ),
    force_option,
    click.option(
        "--diff",
        is_flag=True,
        help="Print what --fix would change, as 'qdq diff' does, and write nothing; "
        "exit 1 if there is anything.",
    ),
)

#: Adds ``--format``, ``--statistics``, ``--exit-zero`` and ``--codes``.
answer_options = combine_options(
    click.option(
        "--format",
        "layout",
        type=click.Choice(tuple(PRINTERS)),
        default="text",
        show_default=True,
        help="Output for people (text), programs (json), code scanning (sarif) or GitHub.",
    ),
    click.option("--statistics", is_flag=True, help="Print how often each code occurs."),
    click.option("--exit-zero", is_flag=True, help="Exit 0 in spite of findings."),
    click.option(
        "--codes",
        is_flag=False,
        flag_value=ALL_CODES,
        metavar="[CODE]",
        help="List the codes, or explain some: codes and severities, comma-separated. Then exit.",
    ),
)
