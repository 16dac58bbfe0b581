"""What tests of plans share."""

import pytest

from plans_lab import CONFIG, MODEL


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG.replace("{model}", repr(MODEL)))
    return path
