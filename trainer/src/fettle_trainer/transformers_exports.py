"""transformers reads its 2,400 source files, twice, whenever it is imported, to learn which names they
export: a fifth of the time until a run's first step. Here that is read once and kept beside the libraries, as
bytecode is.

    import transformers ── its import_utils is loaded ── its reader is wrapped ── kept? ── read, and keep
"""

import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_PACKAGE = "transformers"
_READER = f"{_PACKAGE}.utils.import_utils"
# By the packages that they need, and by module, names.
_Exports = dict[frozenset[str], dict[str, set[str]]]
_Read = Callable[..., _Exports]


def keep_exports() -> None:
    """To be called before transformers is imported; afterwards it does nothing."""
    if _PACKAGE not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds one module, once, as it would be found without."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _READER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader = cast("Any", spec.loader)
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                vars(module)["define_import_structure"] = kept(vars(module)["define_import_structure"])

            loader.exec_module = exec_module
        return spec


def kept(read: _Read) -> _Read:
    """`read`, but of the folder of all models only where nobody has read it before."""

    def define_import_structure(module_path: str | Path, prefix: str | None = None) -> _Exports:
        path = Path(module_path)
        folder = path.parent if path.suffix else path
        if folder.name != "models" or folder.parent.name != _PACKAGE:
            return read(module_path, prefix)
        file = _file_for(folder)
        exports = _loaded(file)
        if exports is None:
            exports = read(str(folder / "__init__.py"))
            _save(file, exports)
        start = "" if prefix is None else f"{prefix}."
        return {
            needs: {f"{start}{module}": set(names) for module, names in modules.items()}
            for needs, modules in exports.items()
        }

    return define_import_structure


def _file_for(folder: Path) -> Path:
    """Named after the release, and when its folder was last changed."""
    release = importlib.metadata.version(_PACKAGE)
    return Path(sys.prefix) / "fettle" / f"{_PACKAGE}-{release}-{folder.stat().st_mtime_ns}.json"


def _loaded(file: Path) -> _Exports | None:
    try:
        found = cast("list[tuple[list[str], dict[str, list[str]]]]", json.loads(file.read_bytes()))
        exports = {
            frozenset(needs): {module: set(names) for module, names in modules.items()}
            for needs, modules in found
        }
        return exports or None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _save(file: Path, exports: _Exports) -> None:
    told = [
        (sorted(needs), {module: sorted(names) for module, names in modules.items()})
        for needs, modules in exports.items()
    ]
    partial = file.with_suffix(f".{os.getpid()}")
    # Where it cannot be kept it is read again.
    with contextlib.suppress(OSError):
        try:
            file.parent.mkdir(exist_ok=True)
            partial.write_text(json.dumps(told), encoding="utf-8")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
