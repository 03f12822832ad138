"""`module:function`: a network or a data set of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..config import ConfigError, suggest


def load_function(field: str, name: str) -> Callable[..., Any]:
    """Import `module:function`; modules beside the user (the current directory) are found.

    Raises:
        ConfigError: no such module or function, naming the nearest.
    """
    module_name, _, function = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{field}={name}: no module named {error.name} (looked in {here} too)") from None
    found = getattr(module, function, None)
    if not callable(found):
        callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{field}={name}: {module_name} has no function {function}{suggest(function, callables)}")
    return found
