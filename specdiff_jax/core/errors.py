"""The one exception that a user is meant to read."""


class InputError(ValueError):
  """Bad input: what was wrong, where (file, key, shape), and what to do.

  `__main__` prints the message without a traceback and exits with code 2;
  anything else that escapes is a bug of ours and keeps its traceback.

  Example:
    >>> import specdiff_jax as sd
    >>> issubclass(sd.InputError, ValueError)
    True
  """
