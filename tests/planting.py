"""A process that plants one mistake after another, each in a fork of itself: torch is imported once for all of them.

Reads one JSON object a line, {"module", "old", "new", "tests"}, and answers each with {"code", "log"}: pytest's exit code
and what it said. An object without a module plants nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

__all__ = ["ROOT", "source_of"]

ROOT = Path(__file__).parent.parent


def source_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


class Planted(MetaPathFinder):
    """Imports one module from source of its own."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        source, file = self.source, str(source_of(fullname))

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                code: CodeType = compile(source, file, "exec", dont_inherit=True)
                return code

        return spec_from_file_location(fullname, file, loader=Loader(fullname, file))


def run(plant: dict[str, Any]) -> dict[str, Any]:
    """Plant a mistake in a fork, and run tests there."""
    with tempfile.TemporaryFile("w+") as log:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                code = _tested(plant)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        log.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "log": log.read()[-2000:]}


def _tested(plant: dict[str, Any]) -> int:
    import pytest

    if "module" in plant:
        source = source_of(plant["module"]).read_text(encoding="utf-8")
        sys.meta_path.insert(0, Planted(plant["module"], source.replace(plant["old"], plant["new"])))
    tests = [f"tests/{test}" for test in plant["tests"]]
    without = ("cacheprovider", "threadexception", "unraisableexception")
    plugins = [word for name in without for word in ("-p", f"no:{name}")]
    return int(pytest.main(["-x", "-p", "pytest_timeout", *plugins, *tests]))


def main() -> None:
    # What tests import that is not the package's own, so that no fork has to.
    import gymnasium  # noqa: F401
    import pytest  # noqa: F401
    import pytest_timeout  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch
    import torch.export

    torch.set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    assert not any(name.startswith("relax_rl") for name in sys.modules), "the package is imported in the forks alone"
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
