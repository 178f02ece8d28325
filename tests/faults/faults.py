"""The faults: each is injected into a training, and its outcome is compared with an undisturbed run."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from tests.faults.trainer import Trainer, differs

# Checkpoints so often that about every second kill hits one.
KILL_FIELDS = {"training.eval_every": 25, "training.checkpoint_every": 1}
SHORT_FIELDS = {"training.num_steps": 12, "training.eval_every": 4, "training.checkpoint_every": 4}


@dataclasses.dataclass
class Outcome:
    """A row of the table.

    Attributes:
        fault: what was done.
        injected: how often.
        survived: how often nothing was lost.
        notes: what else there is to say; what was lost, where something was.
    """

    fault: str
    injected: int
    survived: int
    notes: str


def kills(folder: pathlib.Path, count: int, seed: int, num_steps: int) -> Outcome:
    """`kill -9` at random moments of starting, training and saving; each time the run is started again.

    A kill is lost where the next process does not go on from the newest complete checkpoint, or finds one that it
    cannot read; or where in the end curve and last checkpoint are not those of the undisturbed run, to the bit.
    """
    rng = random.Random(seed)
    fields = KILL_FIELDS | {"training.num_steps": num_steps}
    calm = Trainer(folder, folder / "calm", fields)
    calm.finish(training__checkpoint_every=0)
    injected, during_saves, while_starting, rounds, lost = 0, 0, 0, 0, []
    while injected < count:
        run = Trainer(folder, folder / f"killed{rounds}", fields)
        rounds, newest, is_over = rounds + 1, 0, False
        while not is_over:
            process = run.start()
            if injected == count:
                process.communicate(timeout=600)
                is_over = True
            else:
                is_early = rng.random() < 0.2
                if not is_early:
                    run.wait_for_steps(process)
                is_over = not run.kill_after(process, rng.uniform(0.5, 8.0) if is_early else rng.uniform(0.0, 2.0))
            if not is_over:
                injected += 1
                during_saves += run.is_writing()
                while_starting += run.resumed_from() is None
            if run.resumed_from() not in (None, newest) or "cannot be read" in run.said():
                lost.append(f"expected to go on from {newest}: {' '.join(run.said().split())[:300]}")
            newest = (run.steps() or [0])[-1]
        if process.returncode:
            lost.append(f"ended with status {process.returncode}: {' '.join(run.said().split())[-300:]}")
        elif difference := differs(run, calm):
            lost.append(difference)
    notes = f"{during_saves} during a save, {while_starting} while starting; {rounds} run(s) of {num_steps} steps"
    return Outcome("kill -9", injected, injected - len(lost), "; ".join([notes, *lost]))


def sigterm(folder: pathlib.Path, seed: int) -> Outcome:
    """SIGTERM in the middle: saved, status 0 within 30 seconds, and the same curve in the end."""
    rng = random.Random(seed)
    # Long enough that the signal does not come after the end.
    fields = {"training.num_steps": 600, "training.eval_every": 5, "training.checkpoint_every": 0}
    calm, run = Trainer(folder, folder / "term_calm", fields), Trainer(folder, folder / "term", fields)
    calm.finish()
    process = run.start()
    run.wait_for_steps(process)
    time.sleep(rng.uniform(0.0, 0.2))
    began = time.monotonic()
    was_sent = run.kill_after(process, 0.0, signal.SIGTERM)
    seconds = time.monotonic() - began
    saved = run.steps()
    is_good = was_sent and process.returncode == 0 and seconds < 30 and bool(saved)
    is_good = is_good and run.finish()["resumed_from"] == saved[-1]
    difference = differs(run, calm)
    notes = f"status {process.returncode} after {seconds:.1f} s, saved at step {saved[-1:]}"
    return Outcome("SIGTERM", 1, int(is_good and not difference), f"{notes}; {difference}" if difference else notes)


def flipped_bytes(folder: pathlib.Path, seed: int) -> list[Outcome]:
    """One bit of one byte of the newest checkpoint, in each of its files in turn.

    Survived where the previous checkpoint is taken and said so, or where the byte has no effect: the state is the
    same to the bit. One run with the largest file changed goes on to the end.
    """
    rng = random.Random(seed)
    calm = Trainer(folder, folder / "flip_calm", SHORT_FIELDS)
    calm.finish()
    newest = calm.steps()[-1]
    files = sorted(path for path in (calm.checkpoints / str(newest)).rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    largest = max(files, key=lambda path: path.stat().st_size)
    run = Trainer(folder, folder / "flip", SHORT_FIELDS)
    shutil.copytree(calm.workdir, run.workdir)
    flip(run.workdir / largest.relative_to(calm.workdir), rng)
    summary = run.finish()
    said = f"{run.checkpoints / str(newest)} cannot be read" in run.said()
    is_good = said and summary["resumed_from"] == calm.steps()[-2] and not differs(run, calm)
    whole = Outcome("flipped byte, run goes on", 1, int(is_good), f"resumed from {summary['resumed_from']}")
    seen, harmless, lost = 0, 0, []
    for path in files:
        # The largest files are the arrays: more of their bytes are tried.
        for _ in range(4 if path.stat().st_size > 4096 else 1):
            shutil.rmtree(run.workdir)
            shutil.copytree(calm.workdir, run.workdir)
            flip(run.workdir / path.relative_to(calm.workdir), rng)
            outcome = restored(run, newest, calm)
            seen, harmless = seen + (outcome == "detected"), harmless + (outcome == "harmless")
            if outcome not in ("detected", "harmless"):
                lost.append(f"{path.relative_to(calm.checkpoints)}: {outcome}")
    count = seen + harmless + len(lost)
    notes = f"{seen} detected, {harmless} without effect on the state, in {len(files)} files"
    return [whole, Outcome("flipped byte, each file", count, count - len(lost), "; ".join([notes, *lost]))]


def flip(path: pathlib.Path, rng: random.Random) -> None:
    """Changes one bit of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def restored(run: Trainer, newest: int, calm: Trainer) -> str:
    """What reading the checkpoints of a workdir comes to: "detected", "harmless", or what went wrong."""
    # Imported late: the other faults need no JAX in this process.
    from ssmd_jax.training import checkpoint
    from ssmd_jax.training.digest import digests

    warnings = []
    logging.disable(logging.CRITICAL)  # Orbax tells at length what is asked for here
    try:
        with checkpoint.Checkpoints(run.workdir, read_only=True) as checkpoints:
            # All parts, with the names and shardings they were saved with.
            found = checkpoints._restore_newest(dict.fromkeys(calm.digests(newest)), warnings.append)
    finally:
        logging.disable(logging.NOTSET)
    same = {part: digests(tree) for part, tree in found[1].items()} == calm.digests(found[0])
    if found[0] == newest:
        return "harmless" if same and found[2] else "other numbers than were saved"
    return "detected" if same and warnings else "the previous checkpoint is damaged too"


def full_disk(folder: pathlib.Path) -> Outcome:
    """A file system that fills up with checkpoints: one sentence, status 1, and the last good checkpoint goes on."""
    fields = SHORT_FIELDS | {"training.num_steps": 40, "training.checkpoint_every": 2, "training.keep_last": 100}
    calm = Trainer(folder, folder / "full_calm", fields)
    calm.finish()
    with _small_disk(folder / "disk") as (how, limit, make_room):
        run = Trainer(folder, folder / "disk" / "run", fields)
        process = run.start(limit)
        out, _ = process.communicate(timeout=600)
        said = run.said().strip().splitlines()
        good = run.steps()[-1] if run.steps() else None
        is_sentence = process.returncode == 1 and "Traceback" not in run.said() and not out
        is_sentence = is_sentence and f"the last good checkpoint is {run.checkpoints / str(good)}" in said[-1]
        make_room()
        summary = run.finish()
        is_good = is_sentence and summary["resumed_from"] == good and not differs(run, calm)
        notes = f"{how}; status {process.returncode}, resumed from step {summary['resumed_from']}"
        return Outcome("full disk", 1, int(is_good), notes if is_good else f"{notes}: {said[-1]} {differs(run, calm)}")


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], None] | None, Callable[[], None]]]:
    """What it is, what to do in a process that is to meet it, and what makes room.

    A small tmpfs; where mounting is not allowed, a limit on the size of a file, below that of the arrays.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        yield "limit on the size of files", limit, lambda: None
        return
    try:
        grow = ["mount", "-o", "remount,size=64m", str(folder)]
        yield "tmpfs of 2 MiB", None, lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def damaged_data(folder: pathlib.Path) -> list[Outcome]:
    """A token cache cut short is made again; a source that cannot be read is one sentence."""
    fields = SHORT_FIELDS
    calm, run = Trainer(folder, folder / "data_calm", fields), Trainer(folder, folder / "data", fields)
    calm.finish()
    run.finish(training__stop_step=4)
    tokens = max((folder / "tokens").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    os.truncate(tokens, tokens.stat().st_size // 2)
    resumed = run.finish()["resumed_from"]
    cache = Outcome("truncated token cache", 1, int(resumed == 4 and not differs(run, calm)), "made again")
    (folder / "shard.jsonl").write_text('{"text": "the cat sat"}\n{"text": "the do')
    process = run.start(data__source=str(folder / "shard.jsonl"))
    out, _ = process.communicate(timeout=600)
    said = run.said().strip().splitlines()
    is_sentence = process.returncode == 1 and not out and said[-1].startswith("error: ") and "shard.jsonl" in said[-1]
    is_sentence = is_sentence and "Traceback" not in run.said()
    return [cache, Outcome("unreadable data shard", 1, int(is_sentence), said[-1])]
