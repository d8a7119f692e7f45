"""What the tests of models share."""

from tiny_model import tiny  # a fixture

__all__ = ['tiny']
