"""Judges of proteins that are programs or packages of others: HMMER's profiles, MMseqs2, ESMFold.

None of them is needed by anything else: each is imported or looked for when it is used, and one sentence says what is
missing.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

# A hit as in the papers: expected number of chance hits among all profiles.
EVALUE = 1e-5
# Clusters of sequences at least so alike are one; over so much of the shorter one.
CLUSTER_IDENTITY, CLUSTER_COVERAGE = 0.5, 0.8
# Columns that are asked of a search.
COLUMNS = "query,fident,alnlen,qlen"


class Nearest(NamedTuple):
    """The nearest neighbour of each query.

    Attributes:
        identity_N: share of the query's letters that the best alignment repeats, float64, 0 where there is none.
        is_found_N: bool, whether there is any alignment.
    """

    identity_N: np.ndarray
    is_found_N: np.ndarray


def pfam_hits(sequences: Sequence[str], profiles: os.PathLike | str, cpus: int = 0) -> np.ndarray:
    """Which sequences have a hit of any profile: E < 1e-5, where E counts the file's profiles as tries.

    Args:
        sequences: amino acids.
        profiles: HMMER profiles, `.hmm` or pressed (`.h3m`).
        cpus: threads; 0 for all.

    Returns:
        bool `[N]`.

    Raises:
        ValueError: where the package pyhmmer or the file is missing, or the file holds no profiles.
    """
    path = find_profiles(profiles)
    from pyhmmer import easel, hmmsearch, plan7

    alphabet = easel.Alphabet.amino()
    block = easel.DigitalSequenceBlock(
        alphabet,
        [easel.TextSequence(name=_name(n), sequence=s).digitize(alphabet) for n, s in enumerate(sequences) if s],
    )
    is_hit_N = np.zeros(len(sequences), bool)
    try:
        # Threads take profiles one by one, so that the file is never whole in memory; hence their number comes first.
        with plan7.HMMFile(path) as file:
            count = sum(1 for _ in file)
        with plan7.HMMFile(path) as file:
            for hits in hmmsearch(file, block, cpus=cpus, Z=count, E=EVALUE, bit_cutoffs=None):
                for hit in hits:
                    if hit.evalue < EVALUE:
                        name = hit.name.decode() if isinstance(hit.name, bytes) else hit.name
                        is_hit_N[int(name)] = True
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"the profiles {path} cannot be read: {error}") from None
    if not count:
        raise ValueError(f"the profiles {path} are none; give a file of HMMER profiles")
    return is_hit_N


def find_profiles(profiles: os.PathLike | str) -> pathlib.Path:
    """The path of HMMER profiles that can be searched with.

    Raises:
        ValueError: where the package pyhmmer or the file is missing.
    """
    try:
        import pyhmmer  # noqa: F401, it is there
    except ImportError:
        raise ValueError(
            'the share with a Pfam hit needs the package pyhmmer: pip install "ssmd_jax[proteins]"'
        ) from None
    path = pathlib.Path(profiles).expanduser()
    if not path.is_file():
        raise ValueError(f"there are no profiles at {path}; give a file of HMMER profiles")
    return path


def _name(number: int):
    # Older versions take bytes, newer ones text.
    from pyhmmer import __version__

    return str(number).encode() if tuple(map(int, __version__.split(".")[:2])) < (0, 11) else str(number)


def find_mmseqs(binary: str) -> str:
    """The path of the MMseqs2 program, given by path or by its name on PATH.

    Raises:
        ValueError: where it is not there.
    """
    found = shutil.which(os.path.expanduser(binary))
    if found is None:
        raise ValueError(f"novelty and diversity need MMseqs2, and there is no program {binary}: install mmseqs2")
    return found


def nearest(queries: Sequence[str], targets: Iterable[str], binary: str, sensitivity: float = 5.7) -> Nearest:
    """The nearest target of each query.

    Args:
        queries: amino acids.
        targets: more of them, written to a file one at a time.
        binary: of MMseqs2.
        sensitivity: of the search, from 1 (fast) to 7.5.

    Raises:
        ValueError: where the program is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="proteins-") as folder:
        folder = pathlib.Path(folder)
        write_fasta(folder / "queries.fasta", queries)
        write_fasta(folder / "targets.fasta", targets)
        # The shortest and most distant neighbours count too: what is not found is all the more novel.
        options = ["-s", f"{sensitivity}", "-e", "10", "--max-seqs", "50", "--format-output", COLUMNS]
        files = [folder / "queries.fasta", folder / "targets.fasta", folder / "hits.tsv", folder / "work"]
        _run(binary, "easy-search", [*files, *options])
        identity_N, is_found_N = np.zeros(len(queries)), np.zeros(len(queries), bool)
        for line in (folder / "hits.tsv").read_text().splitlines():
            query, share, aligned, length = line.split("\t")
            # `fident` is a share of the alignment, which may be a few letters.
            of_query = float(share) * int(aligned) / int(length)
            identity_N[int(query)] = max(identity_N[int(query)], min(1.0, of_query))
            is_found_N[int(query)] = True
    return Nearest(identity_N, is_found_N)


def count_clusters(sequences: Sequence[str], binary: str) -> int:
    """Number of clusters at `CLUSTER_IDENTITY` and `CLUSTER_COVERAGE`.

    Raises:
        ValueError: where the program is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="proteins-") as folder:
        folder = pathlib.Path(folder)
        write_fasta(folder / "sequences.fasta", sequences)
        options = ["--min-seq-id", f"{CLUSTER_IDENTITY}", "-c", f"{CLUSTER_COVERAGE}", "--cov-mode", "1"]
        _run(binary, "easy-cluster", [folder / "sequences.fasta", folder / "found", folder / "work", *options])
        pairs = (folder / "found_cluster.tsv").read_text().splitlines()
        return len({line.split("\t")[0] for line in pairs})


def _run(binary: str, command: str, arguments: list) -> None:
    done = subprocess.run(
        [find_mmseqs(binary), command, *map(str, arguments), "-v", "1"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()[-30:])
        raise ValueError(f"{binary} {command} ended with status {done.returncode}: {said}")


def write_fasta(path: os.PathLike | str, sequences: Iterable[str]) -> None:
    """Writes sequences, each named by its number."""
    with open(path, "w", encoding="ascii") as file:
        for number, sequence in enumerate(sequences):
            file.write(f">{number}\n{sequence}\n")


def find_esmfold(folder: os.PathLike | str) -> None:
    """Looks for ESMFold before any work.

    Raises:
        ValueError: where the packages torch and transformers are missing, or the folder.
    """
    try:
        import torch  # noqa: F401, it is there
        import transformers  # noqa: F401
    except ImportError:
        raise ValueError("pLDDT needs the packages torch and transformers: pip install torch transformers") from None
    if not pathlib.Path(folder).expanduser().is_dir():
        raise ValueError(f"there is no ESMFold at {folder}; give the folder of its weights")


def load_esmfold(folder: os.PathLike | str):
    """ESMFold (bioRxiv 2022.07.20.500902) on the accelerator, where there is one; it takes gigabytes, and a while.

    Args:
        folder: as Hugging Face publishes it.

    Returns:
        A `transformers.EsmForProteinFolding`.

    Raises:
        ValueError: where the packages torch and transformers are missing, or the weights cannot be read.
    """
    find_esmfold(folder)
    import torch
    import transformers

    try:
        model = transformers.EsmForProteinFolding.from_pretrained(os.path.expanduser(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the ESMFold in {folder} cannot be read: {error}") from None
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def mean_plddt(sequences: Sequence[str], model, progress: Callable[[str], None] | None = None) -> np.ndarray:
    """Mean confidence of the alpha carbons in ESMFold's structure, 0 to 100.

    Args:
        sequences: amino acids.
        model: from `load_esmfold`.
        progress: told now and then how far it is.

    Returns:
        float64 `[N]`.
    """
    import torch

    means = []
    for number, sequence in enumerate(sequences):
        with torch.no_grad():
            plddt_1xLx37 = model.infer([sequence])["plddt"]
        # Atom 1 is the alpha carbon; the network's scale is 0 to 1.
        means.append(100.0 * float(plddt_1xLx37[0, :, 1].mean()))
        if progress is not None and (number + 1) % 50 == 0:
            progress(f"{number + 1} of {len(sequences)} sequences folded")
    return np.array(means)
