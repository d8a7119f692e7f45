"""What the tests of files share."""

from tiny_model import tiny  # a fixture

__all__ = ['tiny']
