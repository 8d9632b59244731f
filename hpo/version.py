"""The version, alone in a file: it is read without importing the package."""

__version__ = "0.1.0"
