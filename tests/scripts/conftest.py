"""Scripts without a suffix, as modules."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """A function from the name of a script to its module."""

    def load(name: str) -> ModuleType:
        loader = importlib.machinery.SourceFileLoader(name, str(SCRIPTS / name))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        loader.exec_module(module)
        return module

    return load
