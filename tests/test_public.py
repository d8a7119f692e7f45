"""The public face: light to import, documented, and clear about bad input."""

import dataclasses
import doctest
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import specdiff_jax as sd
from specdiff_jax.cli import distill as distill_command

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = f'{ROOT}/configs/tiny.py:smoke'
PROMPTS = ROOT / 'configs' / 'prompts' / 'tiny.jsonl'
PROMPT = 'one two one two'


class Mine:
  """A drafter by its attributes; nothing here runs it."""

  buckets, max_depth, proposal, chain, features = (
    (3,),
    2,
    'deterministic',
    1,
    (),
  )

  def init(self, params, context):
    raise NotImplementedError

  draft = observe = init


class Wants(Mine):
  features = (0,)


class Sizeless(Mine):
  buckets = ()


class Odd(Mine):
  proposal = 'argmax'


class Thawed(Mine):
  __hash__ = None


class Several(Mine):
  buckets = (2, 3)


class Deep(Mine):
  features = (99,)

  def read(self, params, state, context, features, start):
    raise NotImplementedError


class Old(Mine):
  def init(self, params, context, features):
    raise NotImplementedError


@pytest.fixture(scope='module')
def verifier():
  return sd.load_verifier('random:tiny', dtype='float32')


@pytest.fixture(scope='module')
def lookup(verifier):
  return sd.system('lookup', verifier, gamma=4, max_new_tokens=8)


def test_the_import_is_light():
  """Nothing of jax, and no room, before it is used."""
  code = (
    'import sys, specdiff_jax as sd; assert "load_verifier" in dir(sd);'
    'print([m for m in sys.modules if m.startswith(("jax", "specdiff_jax."))])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


def test_a_name_that_is_not_there():
  with pytest.raises(AttributeError, match='no attribute'):
    sd.speculate  # noqa: B018


@pytest.mark.parametrize('name', sd.__all__)
def test_names_are_documented_with_an_example(name):
  """`test_doctests` runs them."""
  found = getattr(sd, name)
  tests = doctest.DocTestFinder().find(found, name, globs={})
  assert any(test.examples for test in tests), f'{name} has no example'


@pytest.mark.slow
def test_a_text_a_list_and_tokens_are_one(lookup, verifier):
  out = lookup.generate(PROMPT)
  assert isinstance(out.text, str) and len(out.tokens) == 8
  assert lookup.generate([PROMPT]) == [out]
  numbers = {'temperature': np.float32(0), 'top_k': np.int64(0)}
  assert lookup.generate(PROMPT, **numbers) == out
  assert lookup.generate(verifier.tokenizer.encode(PROMPT)) == out
  both = lookup.generate([PROMPT, 'another'])
  assert both[0] == out and len(both) == 2
  assert sum(out.histogram) and out.tau >= 1
  pieces = list(lookup.stream(PROMPT))
  assert ''.join(pieces) == out.text


@pytest.mark.slow
def test_output_is_plain_decodings_and_seeded(lookup, verifier):
  plain = sd.system('ar', verifier, gamma=4, max_new_tokens=8)
  for changes in ({}, {'temperature': 1.0, 'seed': 3}, {'top_k': 3}):
    want = plain.generate(PROMPT, **changes)
    assert lookup.generate(PROMPT, **changes).tokens == want.tokens
  hot = [lookup.generate(PROMPT, temperature=1.0, seed=s) for s in (0, 0, 1)]
  assert hot[0] == hot[1] != hot[2]


def test_the_text_is_that_of_the_command(lookup, specdiff, tiny):
  """The same prompt, id and seed."""
  flags = ['--config.max_new_tokens=8', '--config.system=lookup']
  flags += ['--config.temperature=1.0', '--config.seed=5', '--config.batch=1']
  run = specdiff('decode', tiny, *flags, '--prompt', PROMPT)
  out = lookup.generate(PROMPT, temperature=1.0, seed=5)
  assert run.code == 0 and run.out == out.text + '\n'


@pytest.mark.slow
def test_a_call_of_the_same_sizes_compiles_nothing(lookup):
  from specdiff_jax.core import compilations

  lookup.generate(PROMPT)
  before = compilations.count()
  lookup.generate('two one', max_new_tokens=3, temperature=0.7, seed=9)
  lookup.generate(PROMPT, top_k=4, top_p=0.9, stop='x')
  list(lookup.stream(PROMPT, seed=2))
  assert compilations.count() == before
  lookup.generate(PROMPT, max_new_tokens=9)  # buffers grow, in steps
  grown = compilations.count()
  assert grown > before
  lookup.generate(PROMPT, max_new_tokens=16)
  assert compilations.count() == grown


def test_a_stop_string_cuts(lookup):
  whole = lookup.generate(PROMPT).text
  stop = whole[2]
  got = lookup.generate(PROMPT, stop=stop)
  assert got.text == whole[: whole.index(stop)]
  assert ''.join(lookup.stream(PROMPT, stop=[stop])) == got.text


def test_messages_are_chat(lookup, verifier):
  import copy
  import dataclasses

  template = (
    '{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}assistant:'
  )
  tokenizer = copy.copy(verifier.tokenizer)
  tokenizer.chat_template = template
  chatty = dataclasses.replace(verifier, tokenizer=tokenizer)
  system = sd.system('lookup', chatty, gamma=4, max_new_tokens=8)
  messages = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hello'},
    {'role': 'user', 'content': 'Why?'},
  ]
  told = 'system:Be brief.;user:Hi;assistant:Hello;user:Why?;assistant:'
  assert system.generate(messages) == lookup.generate(told)
  assert system.generate([messages, messages])[0] == lookup.generate(told)
  assert system.generate('Hi') == lookup.generate('user:Hi;assistant:')
  assert system.generate('Hi', chat=False) == lookup.generate('Hi')


def test_the_shipped_drafter_is_found_by_fingerprint(verifier, monkeypatch):
  """Here the zoo's card is said to be of this verifier; its sizes are not."""
  import dataclasses

  from specdiff_jax.recipes import drafters

  smollm2 = dataclasses.replace(verifier, fingerprint='62b6d394a1bc4f3f')
  found = {n: drafters.of_zoo(n, smollm2) for n in ('specdiff', 'tree', 'sps')}
  assert found['specdiff'] == found['tree'] != found['sps']
  assert drafters.longest(found['tree']) == 7
  assert drafters.longest(found['sps']) == 0
  assert drafters.of_zoo('specdiff', verifier) == ''
  # Not d2sd's second one, which is of the same kind.
  assert found['specdiff'].endswith('smollm2_135m_instruct.safetensors')


def test_the_shipped_head_is_the_shipped_drafters():
  from specdiff_jax.checkpoints import safetensors_io
  from specdiff_jax.drafters import drafter_file
  from specdiff_jax.drafters import family
  from specdiff_jax.drafters import heads
  from specdiff_jax.drafters import registry
  from specdiff_jax.recipes import drafters

  def fingerprint(name):
    path = str(drafters.ZOO / name)
    form = registry.network(drafter_file.kind(path)).config
    return heads.fingerprint(
      family.Trained(*drafter_file.load(path, None, form), path)
    )

  head = drafters.ZOO / 'smollm2_135m_instruct_markov.safetensors'
  told = safetensors_io.metadata(str(head))['drafter']
  assert told == fingerprint('smollm2_135m_instruct.safetensors')
  assert told != fingerprint('smollm2_135m_instruct_second.safetensors')


def test_a_drafter_of_ones_own(lookup, verifier):
  drafter = lookup.session.engine.drafter
  mine = sd.system('mine', verifier, drafter=drafter, max_new_tokens=8)
  assert mine.generate(PROMPT) == lookup.generate(PROMPT)
  rule = sd.SampleAndMatch()
  other = sd.system(
    'mine', verifier, drafter=drafter, rule=rule, max_new_tokens=8
  )
  assert other.session.engine == mine.session.engine


@pytest.mark.slow
def test_verify_and_bench_are_objects(verifier):
  sizes = {'gamma': 4, 'max_new_tokens': 8}  # of `lookup`: its programs
  found = sd.verify(verifier, ['lookup'], [PROMPT, 'b'], **sizes)
  assert found.passed and found.to_json()['prompts'] == 2
  found = sd.bench(verifier, 'lookup', PROMPT, rounds=1, **sizes)
  assert found.passed and json.dumps(found.to_json())


def told(text):
  """Returns a prompt as a file has it, of another text."""
  return dataclasses.replace(sd.read_prompts(PROMPTS, limit=1)[0], text=text)


def test_a_prompt_of_a_file_may_hold_tokens(lookup, verifier):
  ids = verifier.tokenizer.encode(PROMPT)
  want = lookup.generate(PROMPT)
  for text in (ids, tuple(ids), np.array(ids)):
    assert lookup.generate(told(text)) == want


def bad(name, match, *args, **more):
  return pytest.param(name, match, args, more, id=f'{name}-{match[:24]}')


@pytest.mark.parametrize(
  'name, match, args, more',
  [
    bad('generate', '^prompt is an empty list', []),
    bad('generate', '^prompt is empty', ' '),
    bad('generate', '^prompt is 3 of type int, but', 3),
    bad('generate', '^prompt is 1.5 of type float', [1.5]),
    bad('generate', '^prompt 2 is None of type NoneType', ['a', None]),
    bad('generate', '^prompt holds the token 999, .* 0 to 319', [1, 999]),
    bad('generate', '^prompt has the message .*role and content', [{'role': 1, 'content': ''}]),
    bad('generate', 'no chat template; decode with chat=False', 'a', chat=True),
    bad('generate', '^temperature=-1.0, but', 'a', temperature=-1),
    bad('generate', "'temperature' to 'hot'.*number", 'a', temperature='hot'),
    bad('generate', "'seed' to 0.5.*integer", 'a', seed=0.5),
    bad('generate', '^top_p=2.0, but', 'a', top_p=2.0),
    bad('generate', '^max_new_tokens=0, but', 'a', max_new_tokens=0),
    bad('generate', 'more than the 1024 positions', 'a', max_new_tokens=2000),
    bad('generate', 'Raise prompt_buckets', 'a' * 999),
    bad('generate', "'stop' to 3", 'a', stop=3),
    bad('stream', 'list of 2 prompts', ['a', 'b']),
    bad('system', "no system 'tre'.*tree", 'tre'),
    bad('system', "takes no 'gama'; it takes .*gamma", 'lookup', gama=3),
    bad('system', '^gamma is 0', 'lookup', gamma=0),
    bad('system', '^drafter is not given.*random:tiny.*fingerprint', 'specdiff'),
    bad(
      'system', 'for a vocabulary of 49152', 'specdiff', gamma=4,
      drafter='smollm2_135m_instruct.safetensors',
    ),
    bad('system', 'there is no such', 'specdiff', drafter='none.safetensors'),
    bad('system', '^drafter is a int, which lacks buckets', 'mine', drafter=3),
    bad('system', '^drafter is a Wants, .*no `read`', 'mine', drafter=Wants()),
    bad(
      'system', '^drafter is a Old, whose init.*features', 'mine', drafter=Old()
    ),
    bad('system', '^drafter is a Sizeless whose buckets', 'mine', drafter=Sizeless()),
    bad('system', "^drafter is a Odd whose proposal is 'argmax'.*iid", 'mine', drafter=Odd()),
    bad('system', '^drafter is a Thawed, which cannot be hashed', 'mine', drafter=Thawed()),
    bad('system', '^drafter_params is given', 'lookup', drafter_params=1),
    bad('system', "^rule='rejection' does not go", 'lookup', rule='rejection'),
    bad('generate', '^prompt is an empty list', np.array([], np.int32)),
    bad('generate', '^prompt 1 is 1.9.*has to be', np.array([1.9, 2.2])),
    bad('generate', '^prompt is .*has to be', np.array(3)),
    bad('generate', "^prompt is b'What' of type bytes, but", b'What'),
    bad('generate', '^prompt is .* of type bytearray', bytearray(b'a')),
    bad('generate', '^prompt is .* of type memoryview', memoryview(b'a')),
    bad('generate', '^prompt is .* of type bytes', np.array(b'a')),
    bad('generate', "^prompt 2 is b'a' of type bytes", ['a', b'a']),
    bad('generate', "^prompt 1 is b'a' of type bytes", np.array([b'a', b'b'])),
    bad('generate', "^prompt is b'a' of type bytes", told(b'a')),
    bad('stream', "^prompt is b'' of type bytes", b''),
    bad('generate', '^prompt holds the token 99999, ', told([5, 99999])),
    bad('generate', '^prompt 2 holds the token -7, ', ['a', told([5, -7])]),
    bad('generate', '^prompt is None of type NoneType', told(None)),
    bad('generate', '^prompt is Prompt.* of type Prompt', told(told('a'))),
    bad('generate', '^prompt is empty', told(' ')),
    bad('generate', r'^logprobs is \[1\] of type list.*True', 'a', logprobs=[1]),
    bad('generate', "^trace is 'x' of type str.*True or", 'a', trace='x'),
    bad('system', r"^name is \['lookup'\] of type list", ['lookup']),
    bad('system', '^drafter is a Several of 2 buckets.*wanted', 'me', drafter=Several()),
    bad('system', '^drafter is a Deep.*verifier are 0 to 2', 'me', drafter=Deep()),
    bad('bench', '^stop is', ['lookup'], 'a', stop='x'),
    bad('system', '^name is None of type NoneType.*a text', None),
    bad('system', '^rule is None .*AcceptanceRule', 'me', drafter=Mine(), rule=None),
    bad('system', "^rule is 5 .*'match', ", 'me', drafter=Mine(), rule=5),
    bad(
      'system', '^rule is .* of type type, .*AcceptanceRule', 'me',
      drafter=Mine(), rule=sd.SampleAndMatch,
    ),
    bad('system', '^drafter is .*addresses', 'specdiff', drafter='gs://b/x'),
    bad('verify', '^systems is None', None, 'a'),
    bad('verify', '^fast is 1 of type int', 'lookup', 'a', fast=1),
    bad('bench', '^systems is 5', 5, 'a'),
    bad('bench', '^costs is None', 'lookup', 'a', costs=None),
    bad('bench', "^simulate is '0.5' .*number", 'lookup', 'a', simulate='0.5'),
    bad('bench', '^simulate is True .*number', 'lookup', 'a', simulate=True),
    bad(
      'bench', '^drafter is .*addresses', ['tree', 'ar'], 'a',
      drafter={'tree': 's3://x'},
    ),
    bad('verify', '^systems is', [], 'a'),
    bad('verify', '^prompt is an empty list', ['lookup'], []),
    bad('verify', "takes no 'gama'", ['lookup'], 'a', gama=3),
    bad('verify', 'rule is', ['lookup'], 'a', rule='greedy'),
    bad('bench', "no system 'x'", ['x'], 'a'),
    bad('bench', '^rounds is 0', ['lookup'], 'a', rounds=0),
  ],
)  # fmt: skip
def test_bad_input(lookup, verifier, name, match, args, more):
  if name in ('generate', 'stream'):
    call = getattr(lookup, name)
  elif name == 'system':
    call, args = sd.system, (args[0], verifier)
  else:
    call, args = getattr(sd, name), (verifier, *args)
  with pytest.raises(sd.InputError, match=match):
    call(*args, **more)


def test_params_of_ones_own_drafter_stay_as_they_are(verifier):
  """Though serving merges those of layers that have such names."""
  params = {'query': 1, 'key': 2, 'value': 3}
  mine = sd.system('mine', verifier, drafter=Mine(), drafter_params=params)
  assert mine.session.drafter_params == params


@pytest.mark.parametrize(
  'call, match',
  [
    (lambda: sd.load_verifier(''), '^verifier is empty'),
    (lambda: sd.load_verifier(3), "'verifier' to 3.*text"),
    (lambda: sd.load_verifier('random:x'), "^verifier is 'x'.*tiny"),
    (lambda: sd.load_verifier('random:tiny', 'int4'), '^dtype is'),
    (lambda: sd.system('lookup', 'random:tiny'), '^verifier is of type str'),
    (lambda: sd.verify(None, ['ar'], 'a'), '^verifier is of type NoneType'),
    (lambda: sd.distill(3), '^recipe is of type int'),
    (lambda: sd.distill({'loss': 'x'}), '^loss is'),
    (
      lambda: sd.distill(
        {'data': 'none', 'steps': 1},
        verifier=sd.load_verifier('random:tiny', int8=True),
      ),
      'int8, but drafters are trained',
    ),
    (lambda: sd.distill({'los': 'x'}), "'los'.*loss"),
    (lambda: sd.distill({}, None), '^workdir is None .*a path'),
    (lambda: sd.distill({}, ''), '^workdir is empty'),
    (lambda: sd.distill({}, b'x'), "^workdir is b'x' .*a path"),
    (lambda: sd.distill({}, 'gs://b/x'), '^workdir is .*addresses'),
    (lambda: sd.distill({}, pathlib.Path('gs://b')), '^workdir is .*addresses'),
    (lambda: sd.distill({'data': 'a,gs://b'}), "^data is 'gs://b'.*addresses"),
    (
      lambda: sd.distill(sd.load_recipe(TINY).change(steps='x')),
      "^recipe sets 'steps' to 'x'.*integer",
    ),
    (
      lambda: sd.load_verifier('random:tiny', int8='no'),
      "^int8 is 'no' .*True or False",
    ),
    (lambda: sd.load_verifier('gs://b/model'), '^verifier is .*addresses'),
    (lambda: sd.load_verifier('a\0b'), '^verifier is .*zero byte'),
    (
      lambda: sd.load_verifier('random:tiny', adapter='s3://b'),
      '^adapter is .*addresses',
    ),
    (lambda: sd.load_recipe('none.py'), 'does not exist'),
    (lambda: sd.load_recipe(None), '^spec is None .*a path'),
    (lambda: sd.load_recipe('gs://b/x.py'), '^spec is .*addresses'),
    (lambda: sd.load_recipe(TINY, stepz=5), "'stepz'.*mean steps"),
    (
      lambda: sd.load_recipe(TINY, network={'layer': 3}),
      "'network.layer'.*mean layers",
    ),
    (lambda: sd.load_recipe(TINY, network=3), "'network' to 3.*of its own"),
    (lambda: sd.load_recipe(TINY, gamma='x'), "'gamma' to 'x'.*integer"),
    (lambda: sd.load_recipe(TINY, gamma={'a': 1}), "'gamma' to .*integer"),
    (lambda: sd.load_recipe(TINY, data='gs://b'), '^data is .*addresses'),
    (lambda: sd.load_config(None), '^spec is None .*a path'),
    (lambda: sd.read_prompts('none.jsonl'), 'no such file'),
    (lambda: sd.read_prompts(None), '^path is None .*a path'),
    (lambda: sd.read_prompts('gs://b/x.jsonl'), '^path is .*addresses'),
    (lambda: sd.read_prompts(PROMPTS, limit='2'), "^limit is '2' .*integer"),
    (lambda: sd.read_prompts(PROMPTS, limit=-1), '^limit is -1 .*at least 0'),
    (lambda: sd.read_prompts(PROMPTS, limit=True), '^limit is True'),
    (lambda: sd.read_suite(['mixed']), '^name is .*of type list'),
    (lambda: sd.read_suite('gsm8k', 'gs://b'), '^path is .*addresses'),
    (lambda: sd.read_suite('mixed', limit=-1), '^limit is -1'),
  ],
)
def test_bad_input_of_functions(call, match):
  assert issubclass(sd.InputError, ValueError)
  with pytest.raises(sd.InputError, match=match):
    call()


def test_paths_are_expanded(verifier, tmp_path, monkeypatch):
  """A tilde is the home, of texts and of path objects; names are names."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  at_home = str(tmp_path / 'x')
  for call in (
    lambda: sd.load_verifier('~/x'),
    lambda: sd.load_verifier(pathlib.Path('~/x')),
    lambda: sd.system('specdiff', verifier, drafter='~/x'),
    lambda: sd.bench(verifier, ['tree', 'ar'], 'a', drafter={'tree': '~/x'}),
    lambda: sd.read_prompts('~/x'),
    lambda: sd.read_suite('gsm8k', '~/x'),
    lambda: sd.load_recipe('~/x'),
    lambda: sd.distill({'data': '~/x', 'steps': 1}, verifier=verifier),
  ):
    with pytest.raises(sd.InputError, match=at_home):
      call()
  recipe = sd.load_recipe(TINY, data='~/a,b', drafters={'sps': '~/x'})
  assert recipe.training.data == f'{tmp_path}/a,b'
  assert recipe.systems['sps'].drafter == at_home
  named = sd.load_recipe(TINY, verifier='org/name@main', drafter='org/name')
  assert named.model.verifier == 'org/name@main'
  assert named.drafting.drafter == 'org/name'
  (tmp_path / 'x').symlink_to(PROMPTS)
  assert sd.read_prompts('~/x') == sd.read_prompts(PROMPTS)


def test_the_gamma_of_a_drafter_at_home(verifier, tmp_path, monkeypatch):
  """It is read before the recipe is made."""
  from specdiff_jax.recipes import drafters

  asked = []
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(drafters, 'longest', lambda path: asked.append(path) or 3)
  with pytest.raises(sd.InputError, match=f'{tmp_path}/x'):
    sd.system('specdiff', verifier, drafter='~/x')
  assert asked == [f'{tmp_path}/x']


@pytest.mark.parametrize('workdir', ['~/run', pathlib.Path('~/run')])
def test_the_workdir_of_distill_is_expanded(
  verifier, tmp_path, monkeypatch, workdir
):
  from specdiff_jax.recipes import runs

  def train(recipe, checkpoint, workdir):
    raise sd.InputError(f'in {workdir}')

  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(runs, 'train', train)
  with pytest.raises(sd.InputError, match=f'in {tmp_path}/run$'):
    sd.distill(sd.load_recipe(TINY), workdir, verifier)


def test_values_of_a_recipe_are_those_of_the_command_line():
  values = {'network': {'layers': 1}, 'drafters': {'d2sd': {'first': 'a'}}}
  argv = ['--config.network.layers=1', '--config.drafters.d2sd.first=a']
  call = distill_command.COMMAND.parse([f'--config={TINY}', *argv])
  assert sd.load_recipe(TINY, **values) == call.config
  assert sd.load_recipe(pathlib.Path(TINY), **values) == call.config
  recipe = sd.load_recipe(TINY, template={'a': 1})
  assert recipe.sampling.template == '{"a": 1}'


def test_files_keep_their_names_in_errors(tmp_path):
  with pytest.raises(sd.InputError, match=r'there is no config\.json in'):
    sd.load_verifier(tmp_path)


def test_verify_wants_float32():
  verifier = sd.load_verifier('random:tiny')
  with pytest.raises(sd.InputError, match="dtype='float32', or give fast"):
    sd.verify(verifier, ['lookup'], 'a')
