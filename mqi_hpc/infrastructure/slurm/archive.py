"""Builds stages.pyz, which carries the stage programs to the cluster: the same bytes each time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

_EPOCH = (1980, 1, 1, 0, 0, 0)
_CARRIED = ("records", "stages")
_PACKAGE = '"""What of mqi-hpc runs on the cluster."""\n'
# It must parse under any Python 3, so that an old one is told what is wrong.
_MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.exit("mqi-hpc: the stages need Python 3.9 or newer, this is " + sys.version.split()[0])

from mqi_hpc.stages.__main__ import main

sys.exit(main())
"""


def build_stages() -> bytes:
    """Return a zip application with records and stages: `python stages.pyz STAGE --job-dir DIR`.

    The bytes depend on the sources alone: not on clock, machine or order of listing.
    """
    sources = {"__main__.py": _MAIN.encode(), "mqi_hpc/__init__.py": _PACKAGE.encode()}
    package = files("mqi_hpc")
    for name in _CARRIED:
        sources.update(_python_files(package / name, f"mqi_hpc/{name}"))
    buffer = io.BytesIO()
    # Stored, not compressed: compressors differ from machine to machine.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(sources):
            entry = zipfile.ZipInfo(path, date_time=_EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, sources[path])
    return buffer.getvalue()


def _python_files(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.is_dir() and item.name != "__pycache__":
            yield from _python_files(item, f"{prefix}/{item.name}")
        elif item.name.endswith(".py"):
            yield f"{prefix}/{item.name}", item.read_bytes()
