"""Recipes: what decides a text or a run, and how errors name a field."""

import dataclasses
import json
import pathlib

import pytest

from specdiff_jax.checkpoints import placing
from specdiff_jax.core import errors
from specdiff_jax.core import fields as field_lib
from specdiff_jax.losses import making
from specdiff_jax.losses import options as loss_options
from specdiff_jax.models import transformer_layer
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import options
from specdiff_jax.recipes import recipe
from specdiff_jax.recipes import recipe_file
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import training

TINY = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'tiny.py'
# Run directories and files of completions hold these names since the first
# day: another set, and they do not go on.
TEXT = (
    'verifier', 'adapter', 'drafter', 'masked_lm', 'drafters', 'system',
    'dtype', 'int8', 'exact', 'temperature', 'top_k', 'top_p', 'seed',
    'max_new_tokens', 'gamma', 'exit_layer', 'gammas', 'budgets', 'draft',
    'rule', 'drafts', 'budget', 'denoising_steps', 'denoising_order', 'remask',
    'context_window', 'draft_temperature', 'draft_top_k', 'ngram', 'chat',
    'stop', 'ar_slots', 'decode_mesh',
)  # fmt: skip
RUN = (
    'loss', 'gamma', 'batch', 'learning_rate', 'warmup', 'weight_decay',
    'ce_fraction', 'decay', 'beta_end', 'tokens', 'windows', 'network',
    'eval_fraction', 'seed', 'explosion', 'start_from', 'train_only',
    'lora_rank', 'train_dtype',
)  # fmt: skip
OF_LOSS = {
  'dpace': ('dpace_smoothing',),
  'lk': ('law_temperature', 'stored_law', 'lk_eta'),
  'dspark': ('law_temperature', 'stored_law', 'ce_share'),
  'confidence': ('law_temperature', 'stored_law'),
  'variable_prefix': ('prefix_base',),
  'elbo': ('noise_schedule', 'anneal_fraction'),
  'suffix': ('suffix_base',),
} | dict.fromkeys(
  ('soft_streak', 'kl', 'decayed_kl', 'reverse_kl', 'js', 'tv', 'rejection'),
  ('law_temperature', 'stored_law'),
)
BENCH = (
    'exact', 'batch', 'gamma', 'drafts', 'budget', 'rule', 'draft',
    'max_new_tokens', 'top_k', 'top_p', 'seed', 'chat', 'drafter', 'int8',
    'drafters', 'masked_lm', 'template', 'branches', 'head', 'candidates',
    'frontier', 'diffuspec',
)  # fmt: skip
VERIFY = (
    'drafter', 'rule', 'draft', 'gamma', 'drafts', 'budget', 'dtype',
    'max_new_tokens', 'top_k', 'top_p', 'seed', 'chat', 'template', 'branches',
    'head', 'candidates', 'frontier', 'int8',
)  # fmt: skip


def test_what_decides_a_text_is_what_it_was():
  one = fields.typed({'loss': 'hinge'})
  assert set(one.deciding('text')) == set(TEXT)
  changed = fields.typed({'loss': 'hinge', 'template': '{"x":1}'})
  assert changed.deciding('text') == one.deciding('text') | {
    'template': '{"x": 1}'
  }


def test_a_rounded_drafter_changes_no_text():
  class Checkpoint:
    fingerprint = 'a'

  same = [
    decoding.identity(fields.typed({'int8': value}), Checkpoint())
    for value in ('', 'drafter', 'verifier', 'both')
  ]
  assert same[0] == same[1] != same[2] == same[3]


@pytest.mark.parametrize('name', loss_options.LOSSES)
def test_what_decides_a_run_is_what_it_was(name):
  one = fields.typed({'loss': name})
  assert set(one.deciding('run')) == {*RUN, *OF_LOSS.get(name, ())}


def test_a_new_system_leaves_what_is_on_disk_as_it_is():
  """Where it has no drafter of its own; with one it does not."""
  one = fields.typed({})
  names = {'specdiff', 'specdiff2', 'tree', 'best_first', 'adaptive', 'sps'}
  assert set(one.deciding('text')['drafters']) == names
  other = fields.typed({'drafters': {'lattice': 'x', 'tree': 'y'}})
  assert other.deciding('text')['drafters'] == {
    **dict.fromkeys(names, ''), 'lattice': 'x', 'tree': 'y',
  }  # fmt: skip


def test_what_decides_a_trajectory_is_what_it_was():
  names = {one.name for one in dataclasses.fields(groups.Sampling)}
  wanted = {'temperature', 'top_k', 'top_p', 'seed', 'max_new_tokens', 'chat'}
  assert names == wanted | {'template'}  # where it is not as it was, see above


def test_what_reports_name_is_what_it_was():
  one = fields.typed({})
  assert set(one.reported('bench')) == set(BENCH)
  assert set(one.reported('verify')) == set(VERIFY)


def test_facts_are_json():
  one = fields.typed({'network': {'start': [0, 1]}})
  assert one.deciding('run')['network'] == {
      'kind': 'diffusion', 'layers': 2, 'start': [0, 1], 'features': [],
      'trunk': 1024, 'vocab': 4096, 'ngram': 3,
  }  # fmt: skip


@pytest.mark.parametrize(
  'changes, same',
  [
    ({'steps': 7, 'loss': 'ce', 'join_timeout': 9}, True),
    ({'adapter': 'x'}, False),
    ({'dtype': 'float32'}, False),
    ({'cache_dir': 'x'}, False),
    ({'feature_cache': 0}, False),
    ({'mesh': (1, 1)}, False),
    ({'fsdp': True}, False),
  ],
)
def test_when_a_verifier_serves_another_run(changes, same):
  one = fields.typed({})
  assert training.same_verifier(one, one.change(**changes)) == same


def test_a_field_is_declared_once():
  found = {}
  for kind in recipe.GROUPS:
    for one in dataclasses.fields(kind):
      about = one.metadata['about']
      assert found.setdefault(one.name, about) is about, one.name
  assert set(found) == set(fields.ALL)


def test_every_group_is_one_of_a_recipe():
  groups = {
    one.type
    for one in dataclasses.fields(recipe.Recipe)
    if dataclasses.is_dataclass(one.type)
  }
  systems_and_losses = {
    *options.SYSTEMS.values(),
    *loss_options.LOSSES.values(),
  }
  assert groups | systems_and_losses == set(recipe.GROUPS)


def test_options_and_what_they_construct_have_the_same_names():
  assert set(options.SYSTEMS) == set(systems.SYSTEMS)
  assert set(loss_options.LOSSES) == set(making.LOSSES)
  rule = field_lib.abouts(options.Rule)['rule']
  assert set(rule.choices) == set(systems.RULES)


def test_each_system_has_its_own_drafter():
  one = fields.typed({'drafter': 'a', 'drafters': {'tree': 'b'}})
  assert one.systems['tree'].drafter == 'b'
  assert one.systems['specdiff'].drafter == one.drafting.drafter == 'a'
  assert not hasattr(one.systems['lookup'], 'drafter')
  assert one.change(drafter='c').systems['tree'].drafter == 'b'


def test_flat_and_back():
  one = fields.typed({'gamma': 3, 'masked_lm': {'mask_id': 5}})
  assert recipe.of(one.flat()) == one
  assert one.flat() == fields.complete(one.flat())
  changed = one.change(masked_lm={'family': 'diffugpt'})
  assert changed.flat()['masked_lm']['mask_id'] == 5


def test_a_path_is_expanded_wherever_a_recipe_comes_from(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  one = fields.typed({
      'verifier': pathlib.Path('~/m'), 'data': '~/a,b,~/c', 'stop': ('~/s',),
      'eval_prompts': ['~/p', pathlib.Path('q')], 'template': '{"a": "~/t"}',
      'drafters': {'tree': '~/d', 'd2sd': {'first': '~/e'}},
  })  # fmt: skip
  assert one.model.verifier == '/home/me/m'
  assert one.training.data == '/home/me/a,b,/home/me/c'
  assert one.training.eval_prompts == ('/home/me/p', 'q')
  assert one.systems['tree'].drafter == '/home/me/d'
  assert one.systems['d2sd'].drafter['first'] == '/home/me/e'
  assert one.decoding.stop == ('~/s',) and '~/t' in one.sampling.template
  assert fields.typed(one.flat()) == one
  with pytest.raises(errors.InputError, match='^config.prompts is .*address'):
    fields.typed({'prompts': 's3://x'})


def test_errors_name_fields_at_the_rim_and_arguments_below():
  message = 'gamma is 0, but it has to be at least 1'
  with pytest.raises(errors.InputError, match=f'^{message}'):
    field_lib.check(options.Lookup(gamma=0))
  with pytest.raises(errors.InputError, match=f'^config.{message}'):
    decoding.check(fields.typed({'gamma': 0}))
  with pytest.raises(errors.InputError, match='^config.network.ngram is -1'):
    decoding.check(fields.typed({'network': {'ngram': -1}}))
  with pytest.raises(errors.InputError, match='^The prompt is empty'):
    with fields.rim():
      raise errors.InputError('The prompt is empty')


@pytest.mark.parametrize(
  'said, told',
  [
    ('config.gamma is 0', 'gamma is 0'),
    ('decode with --config.chat=False', 'decode with chat=False'),
    ('Lower config.drafts.', 'Lower drafts.'),
    ('(config.budget=3, drafts=2)', '(budget=3, drafts=2)'),
    ('config.network.layers is 0', 'network.layers is 0'),
    ('config.drafters.d2sd.first is', 'drafters.d2sd.first is'),
    ('in place of config.network and', 'in place of network and'),
    ('of config.stop, config.batch; run', 'of stop, batch; run'),
    ('there is no config.json in this directory', None),
    ('a/generation_config.json asks for it', None),
    ('adapter_config.json: correct it', None),
    ('dflash_config.target_layer_ids is 3', None),
    ('/there/config.gamma/x: there is no such file', None),
    ('my-config.data: there is no such file', None),
    ('config.data: there is no such file', None),
    ('config.data.jsonl is empty', None),
    ("adapter is 'config.gamma', but", None),
    ('or to another config. Nor have', None),
  ],
)
def test_only_fields_lose_their_prefix_as_arguments(said, told):
  with pytest.raises(errors.InputError) as error:
    with fields.arguments():
      raise errors.InputError(said)
  assert str(error.value) == (told or said)


@pytest.mark.parametrize(
  'value, words',
  [
    (float('nan'), 'at least 0'),
    (1.5, 'at most 1'),
    (0.5, ''),
  ],
)
def test_bounds(value, words):
  @dataclasses.dataclass(frozen=True)
  class Options:
    part: float = field_lib.field(0.0, 'a part', low=0, high=1)
    positive: float = field_lib.field(1.0, 'a size', above=0, within='positive')

  if words:
    with pytest.raises(errors.InputError, match=f'part is .*{words}'):
      field_lib.check(Options(part=value))
  else:
    field_lib.check(Options(part=value))
  with pytest.raises(errors.InputError, match='positive is 0.*be positive'):
    field_lib.check(Options(positive=0))


@pytest.fixture(scope='module')
def checkpoint():
  return decoding.verifier(recipe_file.load_recipe(f'{TINY}:smoke'))


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, values',
  [
    ('ar', {'exact': False}),
    ('lookup', {'gamma': 3, 'ngram': 2}),
    ('tree', {'gamma': 3, 'drafts': 2, 'budget': 5, 'drafter': 'random'}),
  ],
)
def test_a_system_of_keyword_arguments(checkpoint, name, values):
  more = {'max_new_tokens': 4, 'prompt_buckets': (16,)}
  network = {'network': {'layers': 1}} if name == 'tree' else {}
  recipe = decoding.told([name], {**values, **more, **network})
  made = decoding.system(recipe, checkpoint, name)
  assert made.name == name and made.settings.max_new_tokens == 4
  if name != 'ar':
    assert made.size['gamma'] == 3


@pytest.mark.slow
def test_what_serves_is_merged_and_what_is_trained_from_is_not(checkpoint):
  assert transformer_layer.is_merged(checkpoint.params['layer_0'])
  more = {'gamma': 3, 'drafter': 'random', 'prompt_buckets': (16,)}
  recipe = decoding.told(['specdiff'], more, network={'layers': 1})
  made = decoding.system(recipe, checkpoint, 'specdiff')
  assert transformer_layer.is_merged(made.drafter_params.network['layer_0'])
  config = recipe_file.load_recipe(f'{TINY}:smoke')
  plain = decoding.verifier(config, split=placing.default)
  assert not transformer_layer.is_merged(plain.params['layer_0'])


@pytest.mark.parametrize(
  'name, values, words',
  [
    ('tre', {}, "'tre'.*tree"),
    ('lookup', {'gama': 3}, "'gama'.*gamma"),
    ('lookup', {'budget': 3}, "'budget'.*ngram"),
    ('lookup', {'gamma': 'x'}, "'gamma' to 'x'.*integer"),
    ('lookup', {'gamma': 0}, '^gamma is 0, but it has to be at least 1'),
    ('early_exit', {'exit_layer': 99}, '^exit_layer is 99'),
    ('specdiff', {}, '^drafter is empty'),
    ('lookup', {'attention': 'kernel'}, "^attention='kernel' is .*is cpu;"),
  ],
)
def test_bad_keyword_arguments(checkpoint, name, values, words):
  with pytest.raises(errors.InputError, match=words):
    with fields.arguments():
      recipe = decoding.told([name], values)
      decoding.system(recipe, checkpoint, name)


def test_a_json_field_is_a_text_or_an_object():
  given = {'enable_thinking': False, 'tools': [{'name': 'é'}]}
  one = fields.typed({'template': given})
  assert json.loads(one.sampling.template) == given
  text = json.dumps(given, indent=2)
  assert fields.typed({'template': text}).sampling == one.sampling
  assert fields.typed({}).change(template=given).sampling == one.sampling
  for bad in ('', '[1]', '{', 3, None, [given], {'x': {1}}):
    with pytest.raises(errors.InputError, match="'template' to .* JSON object"):
      fields.typed({'template': bad})
