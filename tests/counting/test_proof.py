"""The planted faults: each can be planted, and a few are, every time (ORC-05). All of them:
`make mutate-counting`.
"""

import pytest

from tests.counting.faults import FAULTS, Fault
from tests.counting.proof import SCREENING, mutate

SAMPLE = [n for n, fault in enumerate(FAULTS) if "ORC-05" in fault.name]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_in_one_place(fault: Fault) -> None:
    source = (SCREENING / f"{fault.module}.py").read_text()
    assert source.count(fault.old) == 1
    compile(source.replace(fault.old, fault.new), fault.name, "exec")


def test_there_are_forty_faults_and_each_has_its_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


def test_orc_05_each_seeded_mistake_is_caught() -> None:
    found = {fault.name: seen for fault, seen in mutate(SAMPLE, 300, 20, jobs=2)}
    assert len(found) >= 6
    assert all(found.values()), found
