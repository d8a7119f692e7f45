"""Sends Ctrl-C to the programs at random moments; says how they end.

  python benchmarks/interrupts.py SENDS WORKDIR [PROGRAM...]

SENDS SIGINTs to each of bench, decode, collect and distill of configs/tiny.py,
or of the PROGRAMs that are named, from 0.1 s to the end of a run that no one
interrupts. Reported are the exit code as a shell has it, the seconds until
stderr says `interrupted`, and those until the program has ended. Of every fifth
send the same command is then run to its end, which has to go on. Prints a line
a send, and last a JSON object; the exit code is 1 where a code is not 130 or a
program is slower than 1 s to tell, or than 10 s to end. A program that had
printed its result is done, and may say so by 0; in its first moments Python
itself ends by the signal, and says nothing of ours.
"""

import json
import os
import pathlib
import random
import selectors
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = '--config=configs/tiny.py'
PROMPTS = '--prompts=configs/prompts/tiny.jsonl'
TELL, END = 1.0, 10.0  # seconds
EARLY = 0.5  # until our first line, on a busy machine
WRITES = ('decode', 'collect', 'distill')  # and goes on when started again


def command(program, folder):
  """Returns the arguments of a run that takes some seconds."""
  more = {
    'bench': [f'{CONFIG}:smoke'],
    'decode': [CONFIG, PROMPTS, f'--out={folder}/out.jsonl'],
    'collect': [
      CONFIG,
      PROMPTS,
      f'--workdir={folder}',
      '--config.temperature=1.0',
      '--config.completions=4',
    ],
    'distill': [
      CONFIG,
      f'--workdir={folder}',
      '--config.save_every=10',
      '--config.steps=300',
    ],
  }
  return [program, *more[program]]


def start(arguments):
  """Starts a program as a shell does in the foreground."""
  signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored
  return subprocess.Popen(
    [sys.executable, '-m', 'specdiff_jax', *arguments],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,  # as in a terminal its children get it too
  )


def interrupted(process, seconds):
  """Sends SIGINT after some seconds; returns (code, told, ended, out, err).

  `told` and `ended` are seconds since then; `ended` is None if it was over.
  """
  begun, sent, told = time.monotonic(), None, None
  text = {process.stdout: b'', process.stderr: b''}
  with selectors.DefaultSelector() as selector:
    for stream in text:
      selector.register(stream, selectors.EVENT_READ)
    while selector.get_map():
      if sent is None and time.monotonic() >= begun + seconds:
        if process.poll() is not None:
          break
        os.killpg(process.pid, signal.SIGINT)
        sent = time.monotonic()
      wait = 1.0 if sent else max(0, begun + seconds - time.monotonic())
      for key, _ in selector.select(wait):
        data = os.read(key.fd, 1 << 16)
        if not data:
          selector.unregister(key.fileobj)
        text[key.fileobj] += data
        if sent and told is None and b'interrupted' in text[process.stderr]:
          told = time.monotonic() - sent
  code = process.wait()
  code = code if code >= 0 else 128 - code
  ended = time.monotonic() - sent if sent else None
  return code, told, ended, *(data.decode() for data in text.values())


def done(folder, out):
  """Returns whether a program had written all that it writes."""
  lines = pathlib.Path(folder, 'out.jsonl')  # of decode, which prints nothing
  prompts = ROOT / 'configs' / 'prompts' / 'tiny.jsonl'
  return out.rstrip().endswith('}') or (
    lines.exists()
    and len(lines.open().readlines()) == len(prompts.open().readlines())
  )


def fault(folder, seconds, code, told, ended, out, err):
  """Returns what is wrong with the end of an interrupted program, or ''."""
  early = code == 130 and seconds < EARLY and 'interrupted' not in err
  if ('Traceback' in err or 'Fatal' in err) and not early:
    return 'a traceback'
  if code == 0 and done(folder, out):
    return ''
  if code != 130:
    return f'the code is {code}'
  if not early and (told is None or told > TELL):
    return f'told after {told} s'
  return '' if ended <= END else f'ended after {ended:.1f} s'


def finished(program, folder):
  """Runs a program to its end, in this folder; returns the seconds it took."""
  os.makedirs(folder, exist_ok=True)
  begun = time.monotonic()
  process = start(command(program, folder))
  _, err = process.communicate()
  assert process.returncode == 0, err.decode()
  return time.monotonic() - begun


def main(sends, workdir, *programs):
  moment, report = random.Random(0), {}
  for program in programs or ('bench', *WRITES):
    length, found = finished(program, f'{workdir}/{program}'), []
    while len(found) < sends:
      folder = f'{workdir}/{program}_{len(found)}'
      seconds = moment.uniform(0.1, length)
      os.makedirs(folder, exist_ok=True)
      process = start(command(program, folder))
      one = interrupted(process, seconds)
      code, told, ended, _, err = one
      if ended is None:
        length = min(length, seconds)  # the first run compiled more
        continue
      bad = fault(folder, seconds, *one)
      found.append((code, told, ended, bad))
      print(
        f'{program} after {seconds:.2f} s: code {code}, '
        f'told {told if told is None else round(told, 3)}, '
        f'ended {ended:.3f} {bad}{err[-2000:] if bad else ""}',
        flush=True,
      )
      if program in WRITES and len(found) % 5 == 1:
        finished(program, folder)
    codes = [code for code, *_ in found]
    report[program] = {
      'length_s': round(length, 1),
      'codes': {str(code): codes.count(code) for code in sorted(set(codes))},
      'told_s': max((told for _, told, _, _ in found if told), default=None),
      'ended_s': max(ended for _, _, ended, _ in found),
      'faults': [bad for *_, bad in found if bad],
    }
  print(json.dumps(report))
  return int(any(one['faults'] for one in report.values()))


if __name__ == '__main__':
  sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
