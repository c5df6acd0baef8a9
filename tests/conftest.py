"""Tests keep their object code in a folder of their own."""

import os
import tempfile

import pytest

os.environ.setdefault("DIPTYCH_VERIFY", "1")
os.environ.setdefault("DIPTYCH_CACHE", os.path.join(tempfile.gettempdir(), "diptych-test-cache"))


@pytest.fixture
def same_threads():
    """What a test sets as the number of threads is set back."""
    import diptych as dp

    before = dp.threads()
    yield
    dp.set_threads(before)


@pytest.fixture
def two_threads(same_threads):
    import diptych as dp

    dp.set_threads(2)


@pytest.fixture
def natively():
    """What recurs in the dynamic panel is recorded in native code from the start."""
    from diptych.dynamic import PANEL

    PANEL.learn()


@pytest.fixture
def by_python(monkeypatch):
    """The dynamic panel records every call in Python."""
    from diptych import dynamic, running, trail

    panel = dynamic.PANEL
    monkeypatch.setattr(dynamic, "OFTEN", -1)
    monkeypatch.setattr(panel, "recall", dynamic._unknown)
    monkeypatch.setattr(panel, "renew", trail.Piece.renew)
    monkeypatch.setattr(panel.runner, "values", running._values)
    monkeypatch.setattr(panel.runner, "bind", running._bind)
    for name in ("record", "leaf"):
        monkeypatch.delitem(vars(panel), name, raising=False)


@pytest.fixture(params=["natively", "by_python"])
def recorded(request):
    """Both ways in which the dynamic panel records what recurs."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def fluid_process(tmp_path, monkeypatch):
    """Programs, names and scope of fluid as in a new process."""
    from diptych.fluid import dataset, files, framework

    monkeypatch.chdir(tmp_path)
    state, parameters = framework.STATE, framework.SCOPE.parameters
    before = state.main, state.startup, state.names, dict(parameters)
    state.main, state.startup = framework.Program(), framework.Program()
    state.names = framework.UniqueNames()
    yield
    state.main, state.startup, state.names = before[:3]
    parameters.clear()
    parameters.update(before[3])
    files.MAPPED.clear()
    dataset.SETTINGS.source = "mnist"
