"""Injects faults into a tiny training and prints what came of them; standard output ends with one line of JSON.

    python -m tests.faults.run --kills=30

Exit status 1 where anything was lost.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile

from rich.console import Console
from rich.table import Table

from tests.faults import faults


def run(folder: pathlib.Path, kills: int, seed: int, num_steps: int = 250) -> list[faults.Outcome]:
    """All faults, one after another.

    Args:
        folder: an empty one, for all that they need.
        kills: how often to kill.
        seed: of the moments and the bytes.
        num_steps: of the runs that are killed.
    """
    parts = (
        lambda: [faults.sigterm(folder, seed)],
        lambda: faults.flipped_bytes(folder, seed),
        lambda: [faults.full_disk(folder)],
        lambda: faults.damaged_data(folder),
        lambda: [faults.kills(folder, kills, seed, num_steps)],
    )
    outcomes = []
    for part in parts:
        for outcome in part():
            print(f"{outcome.fault}: {outcome.survived} of {outcome.injected} survived", file=sys.stderr, flush=True)
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="how often to kill the training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the bytes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(pathlib.Path(folder), arguments.kills, arguments.seed)
    table = Table("fault", "injected", "survived", "lost", "notes")
    for outcome in outcomes:
        numbers = (outcome.injected, outcome.survived, outcome.injected - outcome.survived)
        table.add_row(outcome.fault, *map(str, numbers), outcome.notes)
    Console(width=120).print(table)
    print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes]))
    sys.exit(any(outcome.survived < outcome.injected for outcome in outcomes))


if __name__ == "__main__":
    main()
