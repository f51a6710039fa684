"""The engine of the collector: it knows no exchange and no database.

Data moves left to right: controllers hand `Delivery` objects to the `Intake`, the writer takes them from there.
"""

__version__ = "0.1.0"
