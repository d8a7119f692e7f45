"""`report`: results as one page of tables and figures."""

import os

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import errors
from specdiff_jax.core import files

_FLAGS = {
  'out': flag.Flag('the .html file to write. Needed'),
  'figures': flag.Flag('folder for each figure as .png and .svg too', ''),
}

COMMAND = command.Command(
  name='report',
  what="""
    Makes one HTML page of results: tables of systems, a text coloured by what
    proposed each token (`bench --trace`), speed-up by prompts and system,
    accuracy in a time budget, acceptance by position, why drafts end, what a
    cycle costs, the cost model against what was measured, tau by temperature
    and by number of drafts, and how drafters learnt, as far as the results have
    it. The page needs no network, and can be read on a phone, by day and by
    night.

    A RESULT is a file that `bench --out` wrote (its name is what the report
    calls it), a folder that `bench --grid` wrote (it stands for its *.json files
    in the order of their names), or the workdir of a run of `distill`. Results
    of `bench` have to be of one verifier in one dtype, rounded to int8 or not,
    measured or simulated (`bench --simulate`) alike.

    The last line of stdout is one JSON object: out, results, figures.
    """,
  flags=_FLAGS,
  examples=(
    'report --out=report.html gsm8k.json humaneval.json runs/distill',
    'report --out=report.html --figures=figures gsm8k.json',
    'report --out=report.html runs/gammas',
  ),
  recipe=False,
  takes='RESULT...',
)


def body(call: command.Call) -> int:
  from specdiff_jax.tools.report import figures
  from specdiff_jax.tools.report import page
  from specdiff_jax.tools.report import results

  out, folder = command.needed(call.options, 'out'), call.options.figures
  if not out.endswith('.html') or not os.path.isdir(
    os.path.dirname(out) or '.'
  ):
    raise errors.InputError(
      f'--out is {out}, but it has to be a file that ends in .html, in a folder '
      'that exists.'
    )
  found = results.read(call.arguments)
  with files.writing(folder or out):
    if folder:
      os.makedirs(folder, exist_ok=True)
    page.write(found, out, folder)
  console.say(f'{out}: written.')
  names = [one.name for one in figures.of(found)]
  told = {'out': out, 'results': list(call.arguments), 'figures': names}
  console.result(told)
  return 0
