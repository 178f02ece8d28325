"""The list of slow cases names tests that are there."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parent


def test_slow_cases_are_there():
    for line in (TESTS / "slow_cases.txt").read_text(encoding="utf-8").splitlines():
        file, _, name = line.rpartition("::")
        sources = [TESTS.parent / file] if file else TESTS.rglob("test_*.py")
        function = re.match(r"\w+", name)[0]
        assert any(re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE) for path in sources), line
