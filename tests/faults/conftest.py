"""Fixtures that start commands as the end-to-end tests do."""

import importlib.util
import pathlib

import pytest

END_TO_END = pathlib.Path(__file__).parents[1] / "end_to_end"
spec = importlib.util.spec_from_file_location("end_to_end_conftest", END_TO_END / "conftest.py")
end_to_end = importlib.util.module_from_spec(spec)
spec.loader.exec_module(end_to_end)


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    return end_to_end.Command(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def tiny() -> pathlib.Path:
    return end_to_end.TINY
