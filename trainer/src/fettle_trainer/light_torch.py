"""PyTorch without what loading and training never use: kernels written in Python that tell which shape an
answer would have. They take a quarter of PyTorch's time to load, and ask for SymPy with a model's first
embedding. A model made without numbers, as transformers makes it, needs none: PyTorch has its own for these.
"""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar, cast

_KERNELS = "torch._meta_registrations"
# They ask for each other, which works only where the kernels come first.
_ALSO = ("torch._decomp", "torch._prims", "torch._refs", "torch.utils._content_store")
_GENERATORS = "_set_generator_metaclass"
_SHARDING = "torch.distributed.tensor"

_Made = TypeVar("_Made")


def import_torch() -> None:
    """To be called before anybody imports PyTorch; afterwards it does nothing. Whoever asks for what was left
    out, as a compiler does, gets it."""
    if "torch" in sys.modules:
        return
    sys.modules[_KERNELS] = ModuleType(_KERNELS)
    try:
        torch = import_module("torch")
    finally:
        del sys.modules[_KERNELS]
    vars(torch).pop(_KERNELS.removeprefix("torch."), None)
    if any(name in sys.modules for name in _ALSO) or not hasattr(torch._C, _GENERATORS):
        import_shapes()  # another release, which begins in another way
        return
    sys.meta_path.insert(0, _KernelsFirst())
    # What else they do, for whoever draws numbers.
    getattr(torch._C, _GENERATORS)(import_module("torch._opaque_base").OpaqueBaseMeta)
    otherwise: Callable[[str], Any] = torch.__getattr__

    def asked(name: str) -> Any:
        # `torch.broadcast_shapes` asks like this, without an import.
        if f"torch.{name}" in (_KERNELS, *_ALSO) and import_shapes():
            return getattr(torch, name)
        return otherwise(name)

    vars(torch)["__getattr__"] = asked


def import_shapes() -> bool:
    """Whether they had been left out until now."""
    if _KERNELS in sys.modules:
        return False
    import_module(_KERNELS)
    return True


def with_shapes(make: Callable[[], _Made]) -> _Made:
    """What `make` makes; again where it turns out that a kernel is needed which was left out."""
    try:
        return make()
    except NotImplementedError:
        if not import_shapes():
            raise
        return make()


@contextmanager
def without_sharding() -> Generator[None]:
    """Whoever asks whether a tensor is split over ranks is told no, where nobody has split one yet. Saving a
    model asks, and to find out takes two seconds otherwise."""
    if _SHARDING in sys.modules:
        yield
        return
    # None is Python's own way to say: there is no such module.
    known = cast("dict[str, object]", sys.modules)
    known[_SHARDING] = None
    try:
        yield
    finally:
        del sys.modules[_SHARDING]


class _KernelsFirst(MetaPathFinder, Loader):
    """Finds whatever is asked for first, once the kernels are there: they have brought it along."""

    _true_spec: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _KERNELS and fullname not in _ALSO:
            return None
        sys.meta_path.remove(self)
        if fullname == _KERNELS:
            return None
        import_shapes()
        module = sys.modules[fullname]
        # Python loads what a module's own spec says, so that until then it is another one.
        self._true_spec = module.__spec__
        module.__spec__ = ModuleSpec(fullname, self)
        return module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._true_spec
