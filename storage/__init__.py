"""The store: what the writer puts in, and the ways to get it out again.

`from storage import DataConverter` for exports, `from storage import Reader` for books in a program.
"""

from storage.convert import DataConverter, Receipt
from storage.reader import BookAt, Gap, Reader

__all__ = ["BookAt", "DataConverter", "Gap", "Reader", "Receipt"]
