"""Fuzz one reader with atheris, guided by branch coverage.

    pip install -e ".[fuzz]"
    python -m tests.fuzz.fuzz_atheris table -runs=100000

Options after the name, such as ``-max_total_time=60``, are passed to libFuzzer. An input that raises
anything but `InputError` is written to ``crash-*`` in the working directory, and the process fails.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cabm"]):
    from tests.fuzz.targets import NAMES, outcome, targets


def main() -> None:
    """Fuzz the target named on the command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"name a target: {', '.join(NAMES)}")
    target = targets()[sys.argv.pop(1)]
    warnings.simplefilter("ignore")
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        work = Path(folder, "work")
        work.mkdir()

        def attack(data: bytes) -> None:
            outcome(target, work, data)

        atheris.Setup([*sys.argv, str(corpus)], attack)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
