"""Layer tars, read and written (driver.md section 7).

* ``unpack_layer``: a tar becomes a branch, whiteouts stay files.
* ``apply_layer``: a tar is carried out on a tree, whiteouts delete.
* ``layer_chunks``, ``write_layer``: a branch becomes a tar.
"""

from driver.archive.apply import apply_layer
from driver.archive.reader import Readable
from driver.archive.unpack import unpack_layer
from driver.archive.writer import layer_chunks, write_layer

__all__ = ["Readable", "apply_layer", "layer_chunks", "unpack_layer", "write_layer"]
