"""Every fault that was found once names tests that exist."""

from __future__ import annotations

import re

from tests.faults import HERE, faults


def test_the_tests_that_are_named_exist() -> None:
    listed = faults()
    assert len(listed) > 40 and len({fault.name for fault in listed}) == len(listed)
    for fault in listed:
        assert fault.tests, fault.name
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (HERE / file).read_text(encoding="utf-8"), re.MULTILINE), test
