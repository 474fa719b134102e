"""Every family: check_model and the public functions on a tiny random model, and the published table says what they say."""

import pytest
from family_table import PAGE, README, block, committed
from matrix import NAMES, measured


@pytest.mark.parametrize("family", NAMES)
def test_a_family_does_what_the_table_says(family):
    assert measured(family) == committed(PAGE.read_text())[NAMES[family]]


def test_the_readme_shows_the_same_table():
    assert list(committed(PAGE.read_text())) == list(NAMES.values())
    assert block(README.read_text()) == block(PAGE.read_text())
