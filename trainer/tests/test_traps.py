"""Each known mistake of other trainers names the test that proves it is not ours, or why there is none."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
ROWS = re.findall(r"^\| ([TF]\d+) \| [^|]+ \| ([^|]+) \|$", (TESTS / "traps" / "README.md").read_text(), re.M)


def test_every_number_is_there() -> None:
    expected = [f"T{number}" for number in range(1, 23)] + [f"F{number}" for number in range(1, 38)]
    assert [number for number, _ in ROWS] == expected


def test_every_proof_exists() -> None:
    for number, proof in ROWS:
        names = re.findall(r"`(\w+\.py::\w+|[\w./-]+/[\w./-]+)`", proof)
        assert names or proof.startswith(("Does not apply: ", "Not yet proven here")), number
        for name in names:
            file, _, test = name.partition("::")
            if test:
                assert f"def {test}(" in (TESTS / file).read_text(), f"{number} names {name}"
            else:
                assert (ROOT / file).exists(), f"{number} names {name}"
