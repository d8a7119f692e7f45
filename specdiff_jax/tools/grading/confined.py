"""The program of a child that runs generated code; see `programs.run`.

It imports nothing of the package. The source comes through stdin; `passed` is
written into the pipe that argv names once all of it ran. Limits of the system
hold time, memory and files; an audit hook refuses processes, sockets, writes
and foreign functions. That is a fence around what a model writes by mistake, and
no jail for what somebody writes on purpose.
"""

import os
import resource
import signal
import sys
import types

_REFUSED = (
  'ctypes.',
  'os.chmod',
  'os.chown',
  'os.exec',
  'os.fork',
  'os.forkpty',
  'os.kill',
  'os.killpg',
  'os.link',
  'os.mkdir',
  'os.posix_spawn',
  'os.putenv',
  'os.remove',
  'os.rename',
  'os.rmdir',
  'os.symlink',
  'os.system',
  'os.truncate',
  'os.unsetenv',
  'os.utime',
  'pty.spawn',
  'resource.',
  'shutil.',
  'signal.pthread_kill',
  'socket.',
  'subprocess.',
  'webbrowser.',
)
# They start processes, or call anything, past the hook.
_MODULES = frozenset(
  ('_posixsubprocess', '_ctypes', 'ctypes', 'multiprocessing')
)
# They reach other processes, and no hook is told.
_UNSEEN = (
  (os, 'pidfd_open'),
  (os, 'setpriority'),
  (signal, 'pidfd_send_signal'),
)
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of unshare(2)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _limit(seconds: int, memory: int) -> None:
  for name, value in (
    ('RLIMIT_CPU', seconds),
    ('RLIMIT_AS', memory),
    ('RLIMIT_FSIZE', 0),
    ('RLIMIT_NOFILE', 64),
    ('RLIMIT_CORE', 0),
  ):
    kind = getattr(resource, name)
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
      value = min(value, most)
    resource.setrlimit(kind, (value, value))
  # No network where the system lets us: Python 3.12, Linux with namespaces.
  unshare = getattr(os, 'unshare', None)
  if unshare is not None:
    try:
      unshare(_NEW_USER | _NEW_NETWORK)
    except OSError:
      pass


def _hook(event: str, args: tuple) -> None:
  if event == 'open':
    _, mode, flags = args
    if flags & _WRITING or mode and set(mode) & set('wax+'):
      raise PermissionError('writing is refused')
  elif event == 'import' and args[0].partition('.')[0] in _MODULES:
    raise ImportError(f'{args[0]} is refused')
  elif event.startswith(_REFUSED):
    raise PermissionError(f'{event} is refused')


def main() -> None:
  pipe, seconds, memory = map(int, sys.argv[1:])
  source = sys.stdin.read()
  _limit(seconds, memory)
  signal.alarm(seconds + 1)  # should the parent be killed
  for module, name in _UNSEEN:
    if hasattr(module, name):
      delattr(module, name)
  sys.addaudithook(_hook)
  sys.argv = ['program']
  # No __main__: what an answer does as a program is not what is asked of it. A
  # module, since dataclasses and pickle look theirs up.
  program = sys.modules['program'] = types.ModuleType('program')
  exec(compile(source, 'program', 'exec'), vars(program))
  os.write(pipe, b'passed')


if __name__ == '__main__':
  main()
