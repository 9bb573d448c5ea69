"""`python -m emulators NAME [options]`: run one emulator; `-h` lists the names."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType

import emulators


def runnable() -> dict[str, ModuleType]:
    """The emulators that have a command line, by name."""
    names = [info.name for info in pkgutil.iter_modules(emulators.__path__)]
    modules = {
        name: importlib.import_module(f"emulators.{name}") for name in names if name != "__main__"
    }
    return {name: module for name, module in modules.items() if hasattr(module, "main")}


def usage(modules: dict[str, ModuleType]) -> str:
    lines = [
        "usage: python -m emulators NAME [-h] [--host HOST] [--port N] [--stop-with-parent]",
        "",
    ]
    for name, module in modules.items():
        lines.append(f"  {name:20} {(module.__doc__ or '').partition(chr(10))[0]}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    modules = runnable()
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(modules))
        return 0 if argv else 2
    if argv[0] not in modules:
        print(f"no emulator named {argv[0]!r}\n{usage(modules)}", file=sys.stderr)
        return 2
    code: int = modules[argv[0]].main(argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
