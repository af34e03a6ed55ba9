"""How a run ends before its end. Codes are those of packages/contract/src/errors.ts."""

import errno
import re

# safetensors writes in Rust and hides errno in its message.
_RUST_NO_SPACE = re.compile(r"os error 28\b|No space left on device")
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|DefaultCPUAllocator", re.IGNORECASE)


class TrainFailure(Exception):
    """Trying again gives the same. `code` is of the error catalogue; `hint` says what to do."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class StopRequested(Exception):
    """SIGTERM came; raised at a place where stopping is safe."""


def is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return type(error).__name__ == "SafetensorError" and _RUST_NO_SPACE.search(str(error)) is not None


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
