"""Trains a drafter for a verifier on its own completions, and decodes with it.

By default a random verifier and a few steps, to see every part run. For a model
of your own give its files and prompts, more steps and a larger network; see
configs/distill_smollm2.py for sizes that work.

  python examples/distill_my_model.py
  python examples/distill_my_model.py --verifier=org/name --data=prompts.jsonl \
      --steps=1000 --workdir=runs/mine
"""

import argparse
import json
import os

import specdiff_jax as sd


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--verifier', default='random:tiny')
  parser.add_argument('--data', help='JSONL file of prompts')
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--workdir', default='runs/distill_my_model')
  args = parser.parse_args(argv)

  os.makedirs(args.workdir, exist_ok=True)
  if not args.data:
    args.data = os.path.join(args.workdir, 'prompts.jsonl')
    with open(args.data, 'w') as file:
      for i in range(40):
        file.write(json.dumps({'id': str(i), 'prompt': f'{i} and {i + 1}'}))
        file.write('\n')
  tiny = args.verifier == 'random:tiny'
  network = {'layers': 1, 'trunk': 64, 'vocab': 257} if tiny else {}
  verifier = sd.load_verifier(args.verifier, dtype='float32')
  done = sd.distill(
    {
      'verifier': args.verifier,
      'dtype': 'float32',
      'data': args.data,
      'chat': not tiny,
      'max_new_tokens': 16 if tiny else 128,
      'gamma': 4,
      'steps': args.steps,
      'batch': 4,
      'tokens': 64 if tiny else 512,
      'windows': 8 if tiny else 96,
      'eval_fraction': 0.2 if tiny else 0.02,
      'network': network,
    },
    workdir=args.workdir,
    verifier=verifier,
  )
  print(f'{done.drafter}: loss {done.loss}, tau {done.tau}')
  system = sd.system('specdiff', verifier, drafter=done.drafter)
  out = system.generate('1 and 2', max_new_tokens=16)
  print(f'{out.text!r}\n{out.tau:.2f} tokens per call of the verifier')


if __name__ == '__main__':
  main()
