"""`--long`: what takes minutes, too. `nox -s documents` gives it."""


def pytest_addoption(parser):
    parser.getgroup("documents").addoption(
        "--long", action="store_true", help="also what takes minutes"
    )
    parser.getgroup("documents").addoption(
        "--nox", metavar="PYTHON", help="a Python that has nox, for the pages' commands"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes, and runs with --long only")


def pytest_collection_modifyitems(config, items):
    if config.getoption("long", False):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker("long")]
