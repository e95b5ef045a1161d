"""Damage that libFuzzer chooses by the branches it reaches, through atheris."""

from __future__ import annotations

import random
import sys

from fuzz.file_kinds import FileKind
from fuzz.file_trial import FileTrials
from fuzz.outcomes import FAILED


def search(kind: FileKind, seconds: int) -> int:
    """Damage files of a kind for some time; the process ends at the first failure.

    libFuzzer writes the file of the failure to the current folder, with the traceback above it.
    """
    try:
        import atheris
    except ImportError:
        print("atheris is not installed. Run 'pip install atheris'.", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["qdq"]):
        trials = FileTrials([kind.name])
    examples = kind.examples(trials.folder)

    def try_content(content: bytes) -> None:
        commands = [*kind.light, *kind.commands]
        chosen = [random.Random(content).choice(commands)] if commands else []
        for outcome in trials.try_content(0, kind, content, chosen):
            if outcome.kind == FAILED:
                raise RuntimeError(f"{outcome.command}: {outcome.fault}\n{outcome.details}")

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        example = content if len(content) > 4 else rng.choice(examples)
        try:
            changed = rng.choice(kind.mutators)(example, rng, 1)
        except Exception:  # noqa: BLE001 a structured change of what is damaged already
            changed = bytes(atheris.Mutate(example, most))
        return changed[:most]

    options = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=200000", "-timeout=20"]
    atheris.Setup(options, try_content, custom_mutator=mutate)
    atheris.Fuzz()
    return 0
