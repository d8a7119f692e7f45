"""What many tests share: where things are, and the programs in this process."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys
import tempfile

import pytest

# Programs started several times compile the same code: once in a session is
# enough. Processes that tests start share it. Set before anything imports jax.
_CACHE = tempfile.TemporaryDirectory(prefix='jax-cache-')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# Compiling is most of what tests do; this saves a third of it.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# And these half of the rest: fusions as they were emitted before, one module in
# place of 32, loops as they were written. XLA ends a process over a flag that it
# does not know, so only where they were tried; and the compiler for TPUs reads
# the same variable and does not know them.
if (
  importlib.metadata.version('jaxlib').startswith('0.10.')
  and importlib.util.find_spec('libtpu') is None
):
  os.environ['XLA_FLAGS'] = ' '.join(
    (
      '--xla_cpu_use_fusion_emitters=false',
      '--xla_cpu_parallel_codegen_split_count=1',
      '--xla_disable_hlo_passes=simplify-while-loops,'
      'while-loop-invariant-code-motion',
      os.environ.get('XLA_FLAGS', ''),
    )
  )
# Where a worker has a core to itself XLA splits nothing among threads.
_WORKER = os.environ.get('PYTEST_XDIST_WORKER', '')
if _WORKER and hasattr(os, 'sched_setaffinity'):
  _CORES = sorted(os.sched_getaffinity(0))
  if len(_CORES) == int(os.environ['PYTEST_XDIST_WORKER_COUNT']):
    os.sched_setaffinity(0, {_CORES[int(_WORKER.removeprefix('gw'))]})

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Suites that mostly compile, or start programs: all of their cases are slow.
# Elsewhere a case of more than three seconds has the mark itself.
_SLOW = (
    'collecting', 'decoding', 'drafters', 'models', 'parallel', 'training',
    'cli', 'tools', 'checkpoints/test_families.py', 'test_configs.py',
    'test_int8_contract.py', 'test_published.py', 'test_readme.py',
    'test_tree_properties.py',
)  # fmt: skip
_QUICK = (
    'cli/test_bad_input.py', 'cli/test_command.py', 'cli/test_interrupts.py',
    'cli/test_paths.py', 'cli/test_progress.py',
    'cli/test_rim.py', 'cli/test_text.py', 'tools/test_bench_metrics.py',
    'tools/test_hlo.py', 'tools/test_roofline.py',
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Marks the cases of slow suites, which `launch/test.sh --fast` leaves out."""
  for item in items:
    path = item.path.relative_to(ROOT / 'tests').as_posix()
    if path.startswith(_SLOW) and path not in _QUICK:
      item.add_marker(pytest.mark.slow)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a program did."""

  code: int
  out: str
  err: str

  @property
  def json(self) -> dict:
    """The object on the last line of stdout."""
    return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture(scope='module', autouse=True)
def fresh_programs():
  """Drops a module's compiled programs after it.

  Each keeps maps of memory, and of those a process of Linux has 65,530: without
  this the whole suite crashes in the compiler near its end.
  """
  yield
  import jax

  jax.clear_caches()


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
  """The root of the repository."""
  return ROOT


@pytest.fixture(scope='session')
def tiny(root) -> str:
  """The flag that takes the smallest recipe."""
  return f'--config={root}/configs/tiny.py:smoke'


@pytest.fixture(scope='session')
def smollm2_path(root) -> str:
  """The quickstart's GGUF file, or the test is skipped."""
  from specdiff_jax.checkpoints import fetch
  from specdiff_jax.core import errors

  try:
    return fetch.quickstart_file(str(root / 'runs' / 'verifier'))
  except errors.InputError as e:
    pytest.skip(f'the verifier of the quickstart is not here: {e}')


@pytest.fixture(scope='session')
def smollm2(smollm2_path):
  """The quickstart's verifier in float32."""
  from specdiff_jax.checkpoints import weights

  return weights.load(smollm2_path, 'float32')


@pytest.fixture
def specdiff(capsys, monkeypatch):
  """Runs `specdiff ARGS` in this process: no second start of Python and jax."""
  from specdiff_jax import __main__
  from specdiff_jax.cli import console

  # However slow the machine is, no line of progress among those that count.
  monkeypatch.setattr(console, '_FIRST', 1e6)

  def run(*argv: str) -> Run:
    capsys.readouterr()
    code = __main__.main([str(arg) for arg in argv])
    sys.stdout.flush()
    done = capsys.readouterr()
    return Run(code, done.out, done.err)

  return run
