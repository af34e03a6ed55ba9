"""Model folders that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from fettle_trainer.fetch_model import FetchError


def is_ready(folder: Path) -> bool:
    """True for a folder with a config and safetensors weights. Folders appear whole, so this is enough."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


@contextlib.contextmanager
def whole_folder(dest: Path) -> Generator[Path]:
    """Yields an empty folder beside ``dest``: it takes that name if the block ends well, or vanishes."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if is_ready(dest):
            return
        if dest.is_dir():
            dest.rmdir()
        temporary.rename(dest)
    except OSError as error:
        if is_ready(dest):
            return
        code = "disk_full" if error.errno == errno.ENOSPC else "model_unavailable"
        raise FetchError(
            code, f"Could not write {dest}: {error}. Make room or mend the folder's rights."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def place(ready: Path, dest: Path) -> None:
    """Hard-links the ready folder to ``dest``; copies where the file systems differ."""
    with whole_folder(dest) as temporary:
        for source in sorted(path for path in ready.rglob("*") if path.is_file()):
            target = temporary / source.relative_to(ready)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
