"""Tabulates tau of systems over verify budgets, temperatures and prompts.

  python benchmarks/relatives.py --prompts=gsm8k.jsonl,humaneval.jsonl \
      --row='chain=specdiff' --row='best-first=best_first' \
      --row='markov=lattice,head=runs/head/head.safetensors' \
      --budgets=5,9,17,33 --temperatures=0,1 --limit=32 --out=runs/relatives

A row is NAME=SYSTEM, and options of the system, FIELD.PART=VALUE for one that has
parts (drafter.second=runs/second/drafter.safetensors). A budget is what a cycle
verifies, the last committed token included: chains draft one less, as far as the
drafter reaches. Prompts are decoded in batches (--batch), since tau does not
depend on it; every text is compared with plain decoding's. --out is a folder: a
cell that is there is not decoded again, so that a killed run goes on. The last
line is JSON.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import statistics

import specdiff_jax as sd
from specdiff_jax.core import files
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.recipes import options as options_lib


def parse(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  numbers = lambda kind: lambda text: [kind(x) for x in text.split(',')]
  add('--prompts', required=True, type=lambda text: text.split(','))
  add('--row', required=True, action='append', help='NAME=SYSTEM[,FIELD=VALUE]')
  add('--budgets', type=numbers(int), default=[5, 9, 17, 33])
  add('--temperatures', type=numbers(float), default=[0.0, 1.0])
  add('--limit', type=int, default=32, help='prompts of each file')
  add('--max_new_tokens', type=int, default=96)
  add('--batch', type=int, default=32)
  add('--gamma', type=int, default=7, help='most that the drafter drafts')
  add('--verifier', default='quickstart')
  add('--dtype', default='float32')
  add('--cache_dir', default='runs/verifier')
  add('--out', required=True)
  return parser.parse_args(argv)


def options_of(system, more, budget, gamma):
  """Returns the options of a system that verifies `budget` tokens a cycle."""
  own = {'gamma': min(gamma, budget - 1)}
  kind = options_lib.SYSTEMS[system]
  if issubclass(kind, options_lib.Budget):
    own = {'gamma': gamma, 'budget': budget}
  elif issubclass(kind, options_lib.Drafts):
    own['drafts'] = max(1, (budget - 1) // own['gamma'])
  for field in more:
    name, value = field.split('=', 1)
    with contextlib.suppress(ValueError):
      value = json.loads(value)
    name, _, part = name.partition('.')
    if part:
      own.setdefault(name, {})[part] = value
    else:
      own[name] = value
  return own


def main(argv=None):
  flags = parse(argv)
  out = pathlib.Path(flags.out)
  out.mkdir(parents=True, exist_ok=True)
  verifier = sd.load_verifier(
    flags.verifier, dtype=flags.dtype, cache_dir=flags.cache_dir
  )
  texts = {
    pathlib.Path(path).stem: [
      one.text for one in prompts_lib.read(path, flags.limit)
    ]
    for path in flags.prompts
  }

  def decoded(name, system, own, suite, temperature):
    """Returns (tau, tokens) of each prompt: from --out where it is there."""
    file = out / f'{name}-{suite}-{temperature:g}.json'
    if file.exists():
      return files.read_json(str(file))['completions']
    one = sd.system(
      system,
      verifier,
      batch=flags.batch,
      max_new_tokens=flags.max_new_tokens,
      temperature=temperature,
      **own,
    )
    done = one.generate(texts[suite])
    result = [(x.tau, [int(token) for token in x.tokens]) for x in done]
    files.write_json(str(file), {'completions': result})
    tau = statistics.mean(x for x, _ in result)
    print(f'{file.stem}: {tau:.3f}', flush=True)
    return result

  rows = collections.defaultdict(dict)
  exact = collections.defaultdict(lambda: [0, 0])
  for temperature in flags.temperatures:
    for suite in texts:
      plain = decoded('ar', 'ar', {'gamma': flags.gamma}, suite, temperature)
      for row in flags.row:
        name, _, spec = row.partition('=')
        system, *more = spec.split(',')
        for budget in flags.budgets:
          own = options_of(system, more, budget, flags.gamma)
          # A chain ends where the drafter does, whatever the budget.
          size = own.get('budget', 1 + own['gamma'] * own.get('drafts', 1))
          found = decoded(f'{name}-{size}', system, own, suite, temperature)
          tau = statistics.mean(x for x, _ in found)
          rows[name][f'{suite} T={temperature:g} N={budget}'] = round(tau, 3)
          same = [a[1] == b[1] for a, b in zip(found, plain, strict=True)]
          exact[name][0] += sum(same)
          exact[name][1] += len(same)
  columns = list(dict.fromkeys(c for cells in rows.values() for c in cells))
  print('| system | exact | ' + ' | '.join(columns) + ' |')
  print('|---' * (2 + len(columns)) + '|')
  for name, cells in rows.items():
    told = f'{exact[name][0]}/{exact[name][1]}'
    values = ' | '.join(f'{cells[c]:.2f}' for c in columns)
    print(f'| {name} | {told} | {values} |')
  print(json.dumps({'tau': rows, 'exact': exact, **vars(flags)}))


if __name__ == '__main__':
  main()
