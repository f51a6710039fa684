"""The store: what the writer puts in, and the ways to get it out again.

from storage import DataConverter
"""

