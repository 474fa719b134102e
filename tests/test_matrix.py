"""Every family.

Check_model and the public functions on a tiny random model, and the published table says what they say.
"""

import pytest
from family_table import PAGE, README, block, committed, sentence_of, table_of
from matrix import NAMES, measured


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_a_family_does_what_the_table_says(family):
    assert measured(family) == committed(PAGE.read_text())[NAMES[family]]


def test_the_readme_names_the_same_families():
    cells = committed(PAGE.read_text())
    assert list(cells) == list(NAMES.values())
    assert block(PAGE.read_text()) == table_of(cells)
    assert block(README.read_text()) == sentence_of(cells)
