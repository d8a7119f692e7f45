"""Prompts as messages, with arguments of the template, through the programs."""

import json
import re

import hf_reference
import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.data import dataset
from specdiff_jax.data import outputs
from specdiff_jax.data import prompts as prompts_lib

TEMPLATE = (
  '{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}'
  '{% if tools %}T{{ tools|length }};{% endif %}'
  '{% if enable_thinking is defined and not enable_thinking %}-{% endif %}a:'
)
MESSAGES = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'go on'},
  {'role': 'assistant', 'content': 'three'},
  {'role': 'user', 'content': 'go on'},
]
TOLD = 's:Be brief.;u:go on;a:three;u:go on;'
LINES = [
  {'id': 'chat', 'messages': MESSAGES},
  {'id': 'prompt', 'prompt': MESSAGES},
  {
    'id': 'thinks',
    'messages': MESSAGES,
    'chat_template_kwargs': {'enable_thinking': False},
    'tools': [{}, {}],
  },
  {'id': 'text', 'prompt': 'one'},
]
WANTED = {
  'chat': TOLD + 'a:',
  'prompt': TOLD + 'a:',
  'thinks': TOLD + 'T2;-a:',
  'text': 'u:one;a:',
}
THINKS_NOT = '--config.template={"enable_thinking": false}'


RECIPE = """
import specdiff_jax as sd

def get_config():
  config = sd.load_config('{tiny}:smoke')
  config.chat, config.prompt_buckets = True, (64,)
  config.system, config.systems = 'lookup', ('lookup',)
  config.eval_fraction = 0.5
  return config
"""


@pytest.fixture(scope='module')
def argv(tmp_path_factory, root):
  """The flags of a tiny verifier with a chat template, and of plain sizes."""
  folder = tmp_path_factory.mktemp('verifier')
  tiny = presets.random('tiny', 'float32')
  hf_reference.write_directory(folder, tiny.config, tiny.params, tiny.tokenizer)
  settings = {'chat_template': TEMPLATE}
  hf_reference.write_json(folder, 'tokenizer_config.json', settings)
  recipe = folder / 'recipe.py'
  recipe.write_text(RECIPE.format(tiny=root / 'configs' / 'tiny.py'))
  return f'--config={recipe}', f'--config.verifier={folder}'


@pytest.fixture
def file(tmp_path):
  """Writes lines as a prompt file; returns the flag that takes it."""

  def write(*lines, name='prompts'):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return f'--prompts={path}'

  return write


def keys(path):
  lines = map(json.loads, path.read_text().splitlines())
  return {line['id']: line['prompt_sha256'] for line in lines}


def wanted(**changes):
  told = WANTED | changes
  return {n: outputs.prompt_key(told[n].encode()) for n in told}


def test_decode_and_goes_on(specdiff, argv, file, tmp_path):
  out = tmp_path / 'out.jsonl'
  run = specdiff('decode', *argv, file(*LINES[:2]), f'--out={out}')
  assert run.code == 0, run.err
  run = specdiff('decode', *argv, file(*LINES), f'--out={out}')
  assert run.code == 0 and '2 of 4 prompts are there' in run.err
  assert keys(out) == wanted()

  changed = LINES[2] | {'chat_template_kwargs': {'enable_thinking': True}}
  run = specdiff('decode', *argv, file(changed), f'--out={out}')
  assert run.code == 2 and "'thinks'" in run.err
  run = specdiff('decode', *argv, file(*LINES), f'--out={out}', THINKS_NOT)
  assert run.code == 2 and 'template was absent and is now' in run.err
  assert keys(out) == wanted()

  argv = *argv, f'--out={out}', '--overwrite'
  run = specdiff('decode', *argv, file(*LINES[:2], changed), THINKS_NOT)
  assert run.code == 0, run.err  # a line's arguments go before the config's
  told = {
    'chat': f'{TOLD}-a:',
    'prompt': f'{TOLD}-a:',
    'thinks': f'{TOLD}T2;a:',
  }
  assert keys(out).items() == (wanted(**told).items() & keys(out).items())


def test_bench_and_verify(specdiff, argv, file):
  for name in ('bench', 'verify'):
    run = specdiff(name, *argv, file(*LINES), THINKS_NOT, '--config.batch=1')
    assert run.code == 0, run.err
    facts = run.json.get('settings', run.json)
    assert facts['template'] == '{"enable_thinking": false}'
    run = specdiff(name, *argv, file(*LINES, {'id': 'x', 'prompt': [{}]}))
    assert (
      run.code == 2 and 'line 5 has the message {}, which has no' in run.err
    )


def test_collect_distill_and_refresh(specdiff, argv, file, tmp_path):
  workdir = tmp_path / 'trajectories'
  sampled = '--config.temperature=1.0'
  collect = 'collect', *argv, sampled, f'--workdir={workdir}'
  run = specdiff(*collect, file(*LINES[:2]))
  assert run.code == 0, run.err
  run = specdiff(*collect, file(*LINES))
  assert run.code == 0, run.err
  header, source = dataset.read(str(workdir))
  assert 'template' not in header  # as before there was that field
  made = {record.id: record for record in map(source.__getitem__, range(4))}
  for name, text in WANTED.items():
    assert bytes(made[name].prompt.tolist()).decode() == text
  assert made['chat'].prompt_hash == made['thinks'].prompt_hash
  assert made['text'].prompt_hash == prompts_lib.text_hash(' one')
  run = specdiff(*collect, file(*LINES[:2]), THINKS_NOT)
  assert run.code == 2 and 'template was absent' in run.err
  changed = LINES[0] | {'messages': MESSAGES[1:]}  # what the user says is equal
  run = specdiff(*collect, file(changed, *LINES[1:]))
  assert run.code == 2 and "'chat'" in run.err

  # What is trained on is not evaluated on, whether as messages or as a text.
  # (By their hashes the text is held out, and the messages are not.)
  distill = (
      'distill', *argv, f'--config.data={workdir}', f'--workdir={tmp_path}/run'
  )  # fmt: skip
  for held_out in (LINES[0], {'id': 'x', 'prompt': 'go on go  on'}):
    path = file(held_out, name='held').removeprefix('--prompts=')
    run = specdiff(*distill, f'--config.eval_prompts=("{path}",)')
    assert run.code == 2 and 'also training prompts' in run.err
  path = file({'id': 'x', 'prompt': 'three'}, name='held').split('=')[1]
  run = specdiff(*distill, f'--config.eval_prompts=("{path}",)')
  assert run.code == 0, run.err

  run = specdiff(
      'collect', *argv, sampled, f'--refresh={tmp_path}/run/drafter.safetensors',
      f'--from={workdir}', f'--workdir={tmp_path}/refreshed',
  )  # fmt: skip
  assert run.code == 0, run.err
  refreshed = dataset.read(str(tmp_path / 'refreshed'))[1]
  assert len(refreshed) and refreshed[0].prompt_hash == made['chat'].prompt_hash


def test_python_and_the_command_are_one(specdiff, argv, file, tmp_path):
  import specdiff_jax as sd

  folder = argv[1].removeprefix('--config.verifier=')
  verifier = sd.load_verifier(folder, dtype='float32')
  system = sd.system('lookup', verifier, max_new_tokens=8)
  out = tmp_path / 'out.jsonl'
  path = file(*LINES)
  assert specdiff('decode', *argv, path, f'--out={out}').code == 0
  lines = map(json.loads, out.read_text().splitlines())
  tokens = {line['id']: line['tokens'] for line in lines}
  given = {'enable_thinking': False, 'tools': [{}, {}]}
  made = system.generate(MESSAGES, template=given)
  assert made.tokens == tokens['thinks'] != tokens['chat']
  assert ''.join(system.stream(MESSAGES, template=given)) == made.text
  assert system.generate(MESSAGES).tokens == tokens['chat']
  both = system.generate(sd.read_prompts(path.removeprefix('--prompts=')))
  assert [one.tokens for one in both] == [tokens[line['id']] for line in LINES]
  usual = sd.system('lookup', verifier, max_new_tokens=8, template=given)
  assert usual.generate(MESSAGES) == made
  assert usual.generate(MESSAGES, template={}).tokens == tokens['chat']
  for template, said in (
    ({'thinking': 1}, "does not read 'thinking'; .* enable_thinking, tools"),
    ({'tools': 'x'}, "tools is 'x'"),
    ({'tools': [print]}, 'JSON object'),
    (['tools'], 'JSON object'),
  ):
    with pytest.raises(sd.InputError, match=said):
      system.generate(MESSAGES, template=template)
  with pytest.raises(sd.InputError, match='enable_thinking.*chat is False'):
    system.generate('a', chat=False, template=given)
  for messages, said in (
    ([{'role': 'user'}], '^prompt has the message .*no content'),
    ([{'content': 'a'}], '^prompt has the message .*no role'),
    ([*MESSAGES, 'a'], '^prompt has the message .*no object'),
    ([{'role': 'user', 'content': print}], 'content is wrong'),
    ([{'role': 'user', 'content': 'a', 'x': print}], 'no JSON'),
  ):
    with pytest.raises(sd.InputError, match=said):
      system.generate(messages)


@pytest.mark.parametrize('name', ['decode', 'bench', 'verify', 'collect'])
def test_bad_arguments(specdiff, argv, file, name, tmp_path):
  more = [f'--workdir={tmp_path}/w'] if name == 'collect' else []
  bad = LINES[0] | {'chat_template_kwargs': {'thinking': True}}
  unread = "does not read 'thinking'; of arguments it reads enable_thinking, to"
  for lines, flag, said in (
    ([bad], '', f"The prompt 'chat': .*{unread}"),
    (LINES, '--config.template={"thinking": 1}', unread),
    (LINES, '--config.template={"thinking"', "sets 'template' to .* JSON object"),
    (LINES, '--config.template=[]', "sets 'template' to .* JSON object"),
    ([bad | {'chat_template_kwargs': 3}], '', 'line 1: .*"chat_template_kwargs"'),
    ([LINES[3] | {'template': {'tools': []}}], '--config.chat=False', 'tools.*chat'),
  ):  # fmt: skip
    run = specdiff(name, *argv, file(*lines), *filter(None, [flag]), *more)
    assert run.code == 2 and run.out == ''
    assert len(run.err.strip().splitlines()) == 1
    assert re.search(said, run.err), run.err
