"""Messages and template arguments of five families, ids against transformers."""

import chat_templates
import hf_reference
import pytest

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer as tokenizer_lib

_TOOLS = [
  {
    'type': 'function',
    'function': {
      'name': 'weather',
      'description': 'Says how the weather is.',
      'parameters': {
        'type': 'object',
        'properties': {'city': {'type': 'string', 'description': 'é "x" <y>'}},
      },
    },
  }
]
_CALL = {'name': 'weather', 'arguments': {'city': 'Rome', 'days': 2}}
SYSTEM = {'role': 'system', 'content': ' You are brief.\n'}
THREE_TURNS = [
  {'role': 'user', 'content': 'What is 2 + 2?'},
  {
    'role': 'assistant',
    'content': '<think>\nEasy.\n</think>\n\n4',
    'name': None,
  },
  {'role': 'user', 'content': '  And\n3 + 3? 🙂 '},
  {'role': 'assistant', 'content': '6', 'thinking': 'Six.'},
  {'role': 'user', 'content': 'Why? <|im_end|>'},
]
CHATS = {
  'one': THREE_TURNS[:1],
  'three turns': THREE_TURNS,
  'a system prompt': [SYSTEM, *THREE_TURNS],
}
USES = [
  *THREE_TURNS[:1],
  {
    'role': 'assistant',
    'content': None,
    'tool_calls': [{'type': 'function', 'id': '123456789', 'function': _CALL}],
  },
  {'role': 'tool', 'content': '{"sky": "blue"}', 'tool_call_id': '123456789'},
]
PARTS = [
  {'role': 'system', 'content': [{'type': 'text', 'text': 'Brief.'}]},
  {'role': 'user', 'content': [{'type': 'text', 'text': 'a '}, {'type': 'image'}]},
]  # fmt: skip
# family -> arguments, and messages that only some families take
ARGUMENTS = {
  'qwen3': (
    {'enable_thinking': False},
    {'enable_thinking': True},
    {'tools': _TOOLS, 'enable_thinking': False},
  ),
  'llama3': (
    {'date_string': '1 Jan 2026'},
    {'tools': _TOOLS},
    {'tools': _TOOLS, 'tools_in_user_message': False},
    {'custom_tools': _TOOLS, 'builtin_tools': ['code_interpreter', 'search']},
  ),
  'gemma3': ({'bos_token': ''},),
  'smollm2': (),
  'mistral': ({'tools': _TOOLS}, {'tools': None}),
}
MORE = {
  'qwen3': (USES,),
  'llama3': (USES,),
  'mistral': (USES,),
  'gemma3': (PARTS,),
}


@pytest.fixture(scope='module', params=chat_templates.FAMILIES)
def family(request, tmp_path_factory):
  """Returns its name, our tokenizer, and that of transformers."""
  transformers = pytest.importorskip('transformers')
  special, more, template = chat_templates.FAMILIES[request.param]
  folder = tmp_path_factory.mktemp(request.param)
  backend = tokenizer_lib.Tokenizer.bytes(257).backend
  backend.add_special_tokens([*special.values(), *more])
  backend.save(str(folder / 'tokenizer.json'))
  settings = special | {'chat_template': template}
  hf_reference.write_json(folder, 'tokenizer_config.json', settings)
  reference = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
  ours = tokenizer_lib.Tokenizer.from_directory(str(folder))
  return request.param, ours, reference


def wanted(reference, messages, arguments):
  return reference.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=False, **arguments
  )


def test_ids_are_those_of_transformers(family):
  name, ours, reference = family
  compared = []
  for messages in (*CHATS.values(), *MORE.get(name, ())):
    for arguments in ({}, *ARGUMENTS[name]):
      ids = ours.encode_prompt(messages, True, arguments)
      assert ids == wanted(reference, messages, arguments)
      # Messages are chat whatever the caller says of texts.
      assert ids == ours.encode_prompt(messages, False, arguments)
      compared.append(ids)
  special = {ours.backend.token_to_id(t) for t in ours.special.values()}
  assert special & set(compared[0])  # they are tokens, not letters
  # Controls: neither messages nor arguments are without effect.
  assert len({tuple(ids) for ids in compared}) >= len(CHATS)
  assert compared[0] != wanted(reference, CHATS['a system prompt'], {})


def test_an_argument_has_its_effect(family):
  """The control of the equality above: swapped arguments are noticed."""
  name, ours, reference = family
  for arguments in ARGUMENTS[name]:
    if any(value not in (None, True) for value in arguments.values()):
      ids = ours.encode_prompt(THREE_TURNS, True, arguments)
      assert ids != wanted(reference, THREE_TURNS, {})


def test_an_argument_that_is_not_read_is_named(family):
  name, ours, _ = family
  for one in ('enable_thinkin', 'messages', 'add_generation_prompt', 'range'):
    with pytest.raises(errors.InputError) as caught:
      ours.encode_prompt(THREE_TURNS, True, {one: False})
    told = str(caught.value)
    assert f'does not read {one!r}' in told and '\n' not in told
    every = {argument for one in ARGUMENTS[name] for argument in one}
    assert all(argument in told for argument in every)
    assert every or 'it reads none' in told


def test_tools_have_to_be_a_list_of_objects(family):
  name, ours, _ = family
  if not any('tools' in arguments for arguments in ARGUMENTS[name]):
    pytest.skip('it reads no tools')
  for tools in ('[{}]', {}, ['weather']):
    with pytest.raises(errors.InputError, match='tools is .* list of objects'):
      ours.encode_prompt(THREE_TURNS, True, {'tools': tools})


def test_a_template_for_tools_goes_before_the_default(tmp_path):
  transformers = pytest.importorskip('transformers')
  tokenizer_lib.Tokenizer.bytes(257).backend.save(
    str(tmp_path / 'tokenizer.json')
  )
  named = {
    'default': '{{ messages[0].content }}',
    'tool_use': '{{ tools|tojson }}{{ messages[0].content }}',
  }
  templates = [{'name': n, 'template': t} for n, t in named.items()]
  hf_reference.write_json(
    tmp_path, 'tokenizer_config.json', {'chat_template': templates}
  )
  ours = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  read = transformers.PreTrainedTokenizerFast.from_pretrained
  reference = read(str(tmp_path))
  for arguments in ({}, {'tools': _TOOLS}):
    ids = ours.encode_prompt(THREE_TURNS, True, arguments)
    assert ids == wanted(reference, THREE_TURNS, arguments)
  with pytest.raises(errors.InputError, match="not read 'tools'.*reads none"):
    ours.encode_prompt(THREE_TURNS, True, {'tools': None})
