"""How the programs of this folder are started, which run foreign things."""

import importlib.util
import os
import sys


def command(program: str, package: str, *more: str) -> list[str]:
  """Returns what starts a program of this folder, which needs one package.

  It runs apart from the environment and the working directory (-I), so it is
  told where the package was found.
  """
  file = os.path.join(os.path.dirname(os.path.abspath(__file__)), program)
  found = importlib.util.find_spec(package)
  assert found and found.origin
  folder = os.path.dirname(os.path.dirname(found.origin))
  return [sys.executable or '', '-I', file, folder, *more]
