"""Chat templates: what they may use, as transformers has it; and their limits.

The constructs are those of published templates; the templates are written anew.
"""

import os
import signal
import subprocess
import sys
import time

import hf_reference
import pytest

from specdiff_jax.core import errors
from specdiff_jax.text import chat_template
from specdiff_jax.text import tokenizer as tokenizer_lib

# Of a text; 1 on a machine that is not busy.
_SECONDS = 10

SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}
_PROMPT = '  What is "2 + 2"?\n<b>é</b> 🙂 '
# name -> template
CONSTRUCTS = {
  'a loop over turns': (
    '{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}'
    '{{ eos_token }}'
    '\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}'
  ),
  'keys with brackets': (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{{ m['content'] | trim }}{% endfor %}"
  ),
  'a usual system turn': (
    "{% if messages[0]['role'] != 'system' %}{{ 'SYS You help.' }}"
    '{% else %}{{ messages[0].content }}{% endif %}|{{ messages[-1].role }}'
  ),
  'a slice without the system turn': (
    "{%- if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    '{% else %}{% set rest = messages %}{% endif -%}'
    '{% for m in rest %}{{ loop.index0 }}{{ m.content }}{% endfor %}'
    '{{ messages[::-1][0].role }}'
  ),
  'roles that alternate': (
    '{% for m in messages %}'
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[INST] ' ~ m.content ~ ' [/INST]' }}{% endfor %}"
  ),
  'facts of the loop': (
    '{% for m in messages * 3 %}{{ loop.index }}{{ loop.first }}'
    '{{ loop.last }}{{ loop.length }}{{ loop.revindex0 }}'
    '{{ loop.previtem.role if loop.previtem is defined else "none" }}'
    '{{ loop.nextitem is defined }}{{ loop.cycle("a", "b") }}'
    '{{ loop.changed(m.role) }};{% endfor %}'
  ),
  'a namespace': (
    '{% set ns = namespace(found=false, at=-1, text="") %}'
    '{% for m in messages %}{% if m.role == "user" and not ns.found %}'
    '{% set ns.found = true %}{% set ns.at = loop.index0 %}'
    '{% set ns.text = ns.text ~ m.content %}{% endif %}{% endfor %}'
    '{{ ns.found }}{{ ns.at }}{{ ns.text }}'
  ),
  'a macro with defaults': (
    '{% macro turn(role, text="nothing", end=eos_token) -%}\n'
    '  <{{ role }}>{{ text }}{{ end }}\n{%- endmacro %}'
    '{{ turn("user", messages[0].content) }}{{ turn("assistant", end="") }}'
  ),
  'a macro that calls its caller': (
    '{% macro box(n) %}[{{ caller(n) }}]{% endmacro %}'
    '{% call(n) box(3) %}{{ n }}{{ messages[0].role }}{% endcall %}'
  ),
  'whitespace control': (
    '  {%- for m in messages -%}\n   <{{- m.role -}}>  \n {%- endfor %}  \n'
    ' {% if true %}\n a \n {% endif %}\n  {# a comment #}\n b \n'
    '{{- " c" }}\n'
  ),
  'tools are none': (
    '{% if tools is not none %}TOOLS{% endif %}'
    '{% if not tools %}no{% endif %}'
    '{% if tools is defined and tools %}T{% endif %}{{ tools is iterable }}'
    '{{ documents is none }}{{ documents is defined }}'
    '{{ tools|default("x") }}'
    '{{ tools|default("x", true) }}'
  ),
  'names that nobody gives': (
    '{% if enable_thinking is defined and enable_thinking is false %}'
    '<think></think>{% else %}thinks{% endif %}'
    '{% set date = date_string or "26 Jul" %}{{ date }}{{ builtin_tools }}'
    '{{ custom_tools is defined }}{{ xml_tools is not defined }}'
    '{{ cls_token is defined }}{{ sep_token }}'
    '{% if strftime_now is defined %}now{% endif %}'
  ),
  'a usual value with set': (
    '{% if not add_generation_prompt is defined %}'
    '{% set add_generation_prompt = false %}{% endif %}'
    '{% if not thinking is defined %}{% set thinking = true %}{% endif %}'
    '{{ add_generation_prompt }}{{ thinking }}'
  ),
  'content as a string or a list': (
    '{% for m in messages %}{% if m.content is string %}{{ m.content }}'
    '{% elif m.content is iterable and m.content is not mapping %}'
    '{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}'
    '{{ m is mapping }}{{ m.content is sequence }}{{ m.x is undefined }}'
    '{{ m.content is none }}{{ 1 is number }}{{ true is boolean }}'
    '{{ m.role is eq("user") }}{{ 3 is odd }}{{ m.role in ["user"] }}'
    '{{ "x" is in "xy" }}{{ 2 is integer }}{{ 2.0 is float }}{% endfor %}'
  ),
  'reasoning of earlier turns': (
    '{% for m in messages %}{% set text = m.content %}{% set why = "" %}'
    '{% if m.reasoning_content is string %}'
    '{% set why = m.reasoning_content %}'
    '{% elif "</think>" in text %}'
    '{% set why = text.split("</think>")[0].rstrip("\\n")'
    '.split("<think>")[-1]'
    '.lstrip("\\n") %}{% set text = text.split("</think>")[-1] %}'
    '{% endif %}'
    '({{ why }})({{ text }}){% endfor %}'
  ),
  'calls of tools': (
    '{% for m in messages %}{% if m.tool_calls %}C{% endif %}'
    '{% if "tool_calls" in m and m["tool_calls"] is not none %}D{% endif %}'
    '{{ m.get("name", "nobody") }}{{ m.keys()|list }}'
    '{% for key, value in m.items() %}{{ key }}={{ value }},{% endfor %}'
    '{% for key, value in m|dictsort %}{{ key }}{% endfor %}{% endfor %}'
  ),
  'JSON': (
    '{{ messages|tojson }}{{ messages|tojson(indent=2) }}'
    '{{ {"b": 1.5, "a": [none, true]}|tojson(sort_keys=true) }}'
    '{{ messages[0]|tojson(ensure_ascii=True) }}'
    '{{ [1, 2]|tojson(separators=(",", ":")) }}{{ "<&>\'"|tojson }}'
    '{{ {}|tojson(false, 4) }}'
  ),
  'methods of strings': (
    "{% set t = messages[0]['content'] %}{{ t.strip() }}|{{ t.upper() }}|"
    "{{ t.replace('2', 'two') }}|{{ t.startswith('  W') }}|{{ t.split() }}|"
    "{{ t.title() }}|{{ t.find('2') }}|{{ '-'.join(['a', 'b']) }}|"
    "{{ t.strip().endswith('>') }}|{{ '{}: {}'.format(1, 'x') }}|"
    "{{ '%s %d' % ('a', 3) }}|{{ t[2:6] }}|{{ t[-3:] }}|"
    '{{ t.splitlines() }}'
    "|{{ t.count('2') }}|{{ t.lstrip() }}|{{ 'a,b'.partition(',') }}"
  ),
  'filters': (
    '{{ messages|length }}{{ messages|map(attribute="role")|join(", ") }}'
    '{{ messages|selectattr("role", "equalto", "user")|list|count }}'
    '{{ messages|rejectattr("role", "equalto", "user")|list }}'
    '{{ [3, 1, 2]|sort|first }}{{ [3, 1]|last }}'
    '{{ "aBc"|lower|capitalize }}'
    '{{ "a b"|replace(" ", "_") }}{{ [1, 2, 3]|sum }}{{ "x"|upper|safe }}'
    '{{ "<a>"|escape }}{{ "a\nb"|indent(4) }}{{ "a\nb"|indent(2, true) }}'
    '{{ 3.7|int }}{{ "5"|int + 1 }}{{ 2|string ~ "x" }}{{ [[1, 2]]|first }}'
    '{{ 5|default(3) }}{{ nobody|default("d") }}{{ [1, 2]|reverse|list }}'
    '{{ "abc"|list }}{{ [1, 1]|unique|list }}{{ -3|abs }}'
    '{{ 2.55|round(1) }}'
    '{{ "hello world"|wordcount }}{{ "abcdef"|truncate(4, true, "..") }}'
    '{{ [1, 2, 3]|select("odd")|list }}{{ ["a", "b"]|map("upper")|list }}'
    '{{ [1, 2, 3]|batch(2)|list }}{{ [1, 2]|max }}'
    '{{ [{"a": 1}]|groupby("a") }}'
    '{{ "a"|center(5) }}{{ {"a": 1}|items|list }}{{ "%03d"|format(7) }}'
  ),
  'break and continue': (
    '{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}'
    '{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}'
  ),
  'else of a loop': (
    '{% for m in messages if m.role == "tool" %}{{ m.role }}'
    '{% else %}no tool'
    '{% endfor %}'
  ),
  'a loop that calls itself': (
    '{% for m in [[1, [2, [3]]]] recursive %}{% if m is iterable %}'
    '({{ loop(m) }}){% else %}{{ m }}@{{ loop.depth }}{% endif %}'
    '{% endfor %}'
  ),
  'generation': (
    '{% for m in messages %}{% if m.role == "assistant" %}A{% endif %}'
    '{% generation %}{{ m.content }}{% set x = 1 %}\n  {% endgeneration %}'
    '{{ x is defined }}{% endfor %}'
    '{%- generation -%}  {%- endgeneration -%}'
    '{% generation %}{% endgeneration %}'
  ),
  'a block of set': (
    '{% set head %}<{{ messages[0].role }}>\n{% endset %}{{ head }}'
    '{{ head|trim }}'
    '{% set a, b = 1, "two" %}{{ a }}{{ b }}'
    '{% set c | upper %}x{% endset %}{{ c }}'
  ),
  'expressions': (
    '{{ 1 if messages else 2 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}'
    '{{ 7 / 2 }}'
    '{{ not false and (true or false) }}{{ 1 < 2 <= 2 }}'
    '{{ "a" ~ 1 ~ none }}'
    '{{ [1, 2] + [3] }}{{ (1, 2) }}{{ {"a": [1]}["a"][0] }}{{ "a" * 3 }}'
    '{{ 1.0 }}{{ none }}{{ true }}{{ "a" not in "b" }}{{ -1 }}{{ 1e3 }}'
  ),
  'a filter over a block': (
    '{% filter upper %}{{ messages[0].role }} b{% endfilter %}'
    '{% with x = 3 %}{{ x }}{% endwith %}{{ x }}'
  ),
  'raw text': '{% raw %}{{ not this }}{% endraw %}{{ "{{" }}{# {{ nor }} #}',
  'functions': (
    '{{ range(3)|list }}{{ range(1, 8, 3)|list }}{{ dict(a=1, b=2) }}'
    '{{ dict.fromkeys(["a"], 3) }}{% set j = joiner(", ") %}'
    '{{ j() }}a{{ j() }}'
    '{% set c = cycler("x", "y") %}{{ c.next() }}{{ c.next() }}'
    '{{ c.current }}'
    '{{ namespace({"a": 1}, b=2).a }}'
  ),
  'the time': (
    '{{ strftime_now("%Y")|length }}{{ strftime_now("%d %b %Y") }}'
    '{% set now = strftime_now("%B") %}{{ now == now|capitalize }}'
  ),
  'what an object shows': '{{ messages }}{{ messages[0] }}'
  '{{ [none, true, 1.0] }}',
  'attributes that are not there': (
    '{{ messages[0].nothing }}{{ messages[0]["nothing"] is defined }}'
    '{{ messages[5] is defined }}{{ nobody }}{{ (nobody or "x") }}'
    '{{ messages[0].content[0] }}'
  ),
  'lines': (
    'a\r\nb\n{{ messages[0].role }}\n\n{% if true %}\n\nc\n{% endif %}\n\n'
  ),
}
# What some of them make of the prompt "Hi".
STORED = {
  'a loop over turns': '<|user|>\nHi</s>\n<|assistant|>\n',
  'tools are none': 'noFalseTrueTrueNonex',
  'names that nobody gives': 'thinks26 JulFalseTrueFalsenow',
  'generation': 'HiFalse',
  'break and continue': '023',
  'content as a string or a list': 'HiTrueTrueTrueFalse' + 'True' * 8,
}


def render(template, prompt, special=SPECIAL):
  tokenizer = tokenizer_lib.Tokenizer(
    tokenizer_lib.Tokenizer.bytes(300).backend, special, [], template
  )
  return tokenizer.render_chat(prompt)


@pytest.mark.parametrize('name', STORED)
def test_stored(name):
  assert render(CONSTRUCTS[name], 'Hi') == STORED[name]


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """Returns (template, prompt) -> the text that transformers makes."""
  transformers = pytest.importorskip('transformers')
  folder = tmp_path_factory.mktemp('reference')
  backend = tokenizer_lib.Tokenizer.bytes(300).backend
  backend.add_special_tokens(list(SPECIAL.values()))
  backend.save(str(folder / 'tokenizer.json'))
  hf_reference.write_json(folder, 'tokenizer_config.json', SPECIAL)
  read = transformers.PreTrainedTokenizerFast.from_pretrained
  tokenizer = read(str(folder))

  def one(template, prompt):
    chat = [{'role': 'user', 'content': prompt}]
    return tokenizer.apply_chat_template(
      chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )

  return one


@pytest.mark.parametrize('name', CONSTRUCTS)
def test_as_transformers(reference, name):
  made = set()
  for prompt in (_PROMPT, 'Hi', '', '<think>\na\n</think>b {{ x }}'):
    made.add(wanted := reference(CONSTRUCTS[name], prompt))
    assert render(CONSTRUCTS[name], prompt) == wanted
  assert all(made) or name == 'nothing'
  assert len(CONSTRUCTS) >= 30


_REFUSED = {
  "{{ raise_exception('no\nsystem') }}": r'no\\nsystem',
  '{% if %}': 'Expected an expression',
  '{{ nobody.nothing }}': "'nobody' is undefined",
  '{{ 1 // 0 }}': 'zero',
  '{% frobnicate %}': 'unknown tag',
  '{{ 1|frobnicate }}': 'No filter named',
  "{% include 'x' %}": 'no loader|loader',
  '{{ namespace(_x=1) }}': 'underscore|takes no',
  '{% set ns = namespace() %}{% set ns.__x = 1 %}': 'takes no',
}


@pytest.mark.parametrize('template', _REFUSED)
def test_refused_as_transformers_does(reference, template):
  with pytest.raises(errors.InputError, match='chat template fails') as error:
    render(template, 'Hi')
  assert '\n' not in str(error.value)
  with pytest.raises(Exception):
    reference(template, 'Hi')


# --- limits -----------------------------------------------------------------

_WAYS_OUT = (
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{{ ''['__class__'] }}",
  "{{ ''|attr('__class__') }}",
  '{{ messages.__class__.__base__ }}',
  '{{ raise_exception.__globals__ }}',
  '{{ strftime_now.__globals__.datetime }}',
  "{{ strftime_now['__globals__'] }}",
  '{{ (strftime_now|attr)("__globals__") }}',
  '{{ range.__self__ }}',
  '{{ lipsum.__globals__.os.popen("id").read() }}',
  "{{ lipsum|attr('__globals__') }}",
  '{{ cycler.__init__.__globals__.os }}',
  '{{ joiner.__init__.__globals__ }}',
  '{{ namespace.__init__.__globals__ }}',
  '{{ dict.__base__ }}',
  '{{ dict.mro() }}',
  '{{ self.__init__.__globals__ }}',
  '{{ self._TemplateReference__context }}',
  '{{ caller.__globals__ }}',
  "{{ '%s'|format('x').__class__ }}",
  "{{ '{0.__class__}'.format(1) }}",
  "{{ '{0.__class__.__mro__}'.format_map({'0': 1}) }}",
  "{{ ('{0.__class__}'|attr('format'))(1) }}",
  "{% set f = '{0.__class__.__init__.__globals__}'.format %}{{ f(messages) }}",
  "{{ ['{0.__class__}'.format][0](1) }}",
  "{{ ['{0.__class__}']|map('format', 1)|list }}",
  "{{ [messages]|map(attribute='__class__')|list }}",
  "{{ [messages]|map('attr', '__class__')|list }}",
  "{{ messages|groupby('__class__') }}",
  "{{ [1]|sum(attribute='__class__') }}",
  "{{ [1]|sort(attribute='__class__') }}",
  '{{ messages.append(1) }}',
  '{{ messages[0].update(a=1) }}',
  '{{ messages[0].pop("role") }}',
  '{{ messages.clear() }}',
  '{% macro m() %}{% endmacro %}{{ m.__code__ }}',
  '{% macro m() %}{% endmacro %}{{ m._func }}',
  '{{ loop.__class__ }}',
  '{% for m in messages %}{{ loop._iterator.gi_frame }}{% endfor %}',
  '{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}',
  "{% import 'os' as os %}",
  "{% from '/etc/passwd' import x %}",
  "{% extends '/etc/passwd' %}",
  "{% include '/etc/passwd' %}",
  "{{ ''.encode().__class__ }}",
  '{{ (1).__class__.__bases__ }}',
  '{{ none.__class__ }}',
  '{{ ().__class__.__base__.__subclasses__() }}',
  '{{ undefined.__init__.__globals__ }}',
  '{{ tojson.__globals__ }}',
)


@pytest.mark.parametrize('template', _WAYS_OUT)
def test_no_way_out(template):
  """Refused, or it comes to nothing: no class, module or file is shown."""
  try:
    text = render(template, 'Hi')
  except errors.InputError:
    return
  for word in ('class', 'function', 'module', 'object', 'root:', 'uid='):
    assert word not in text, text


_GREEDY = {
  'loops': '{% for i in range(99999) %}{% for j in range(99999) %}'
  '{% endfor %}'
  '{% endfor %}',
  'a long range': '{% for i in range(10 ** 9) %}{% endfor %}',
  'a power': '{{ 2 ** (10 ** 9) }}',
  'a power before it renders': '{{ 3 ** 400000000 }}',
  'a long string': "{{ 'a' * 10 ** 10 }}",
  'a string that doubles': '{% set n = namespace(x="ab") %}{% for i in range(99) %}'
  '{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}',
  'a list that doubles': '{% set n = namespace(x=[1]) %}{% for i in range(99) %}'
  '{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}',
  'padding': "{{ '%1000000000d' % 1 }}",
  'padding of a format': "{{ '{:9999999999}'.format(1) }}",
  'centred': "{{ 'x'|center(10 ** 10) }}",
  'indented': "{{ ('a\n' * 10 ** 6)|indent(10 ** 6) }}",
  'replaced': "{{ ('a' * 10 ** 6).replace('a', 'a' * 10 ** 6) }}",
  'lipsum': '{{ lipsum(n=10 ** 9) }}',
  'cycler': '{% set c = cycler(1, 2) %}{% for i in range(99999) %}'
  '{% for j in range(99999) %}{{ c.next() }}{% endfor %}'
  '{% endfor %}',
  'a macro that calls itself': '{% macro f() %}{{ f() }}{% endmacro %}'
  '{{ f() }}',
  'macros that call each other twice': '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}'
  '{% endmacro %}{{ f(90) }}',
  'a loop that calls itself': '{% for i in [[]] recursive %}{{ loop([[]]) }}{% endfor %}',
  'much output': '{% for i in range(9999) %}{{ "x" * 9999 }}{% endfor %}',
  'output that does not end': '{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}'
  '{% endfor %}',
  'a filter over much': "{{ ('ab ' * 10 ** 7)|wordwrap(1) }}",
  'links': "{{ ('http://a.b ' * 10 ** 6)|urlize }}",
  'brackets': '{{ ' + '(' * 10**5 + '1' + ')' * 10**5 + ' }}',
  'signs': '{{ ' + '-' * 10**5 + '1 }}',
  'blocks': '{% if 1 %}' * 5000 + '{% endif %}' * 5000,
  'lists': '{{ ' + '[' * 10**4 + ']' * 10**4 + '}}',
  'products': '{{ (range(9999)|list * 9999)|sort|string|length }}',
  'digits': "{{ ('9' * 4000)|int ** 99999 }}",
  'JSON': "{{ ([['x' * 999] * 999] * 999)|tojson }}",
}


@pytest.fixture
def hurried(monkeypatch):
  """Gives a text less time than usual."""
  monkeypatch.setattr(chat_template, '_SECONDS', 0.2)
  chat_template.render('', {})
  chat_template._process.stop()
  yield
  chat_template._process.stop()


@pytest.mark.parametrize('name', _GREEDY)
def test_what_asks_for_too_much(hurried, name):
  """One sentence, soon; the next text renders as if nothing had been."""
  begin = time.monotonic()
  with pytest.raises(errors.InputError, match='chat template fails') as error:
    render(_GREEDY[name], 'Hi')
  assert time.monotonic() - begin < _SECONDS
  assert '\n' not in str(error.value) and len(str(error.value)) < 600
  assert render('{{ messages[0].content }}', 'Hi') == 'Hi'


def test_time_and_memory_are_bounded():
  """With the usual limits."""
  begin = time.monotonic()
  with pytest.raises(errors.InputError, match='too much time or memory'):
    render(_GREEDY['loops'], 'Hi')
  assert 0.7 < time.monotonic() - begin < _SECONDS
  for name in ('a string that doubles', 'a list that doubles'):
    with pytest.raises(errors.InputError, match='512 MiB of memory'):
      render(_GREEDY[name], 'Hi')
  process = f'/proc/{chat_template._process._process.pid}'
  if not os.path.exists(process):
    pytest.skip('the operating system does not tell the memory of a process')
  with open(f'{process}/status', encoding='utf-8') as file:
    facts = dict(line.split(':', 1) for line in file)
  peak = int(facts['VmHWM'].split()[0])  # KiB
  assert 200 << 10 < peak < 600 << 10


def test_a_long_prompt():
  prompt = 'é🙂' * 300_000
  assert render('{{ messages[0].content }}!', prompt) == prompt + '!'


def test_one_process_for_all_that_is_started_anew():
  assert render('{{ eos_token }}', 'Hi') == '</s>'
  first = chat_template._process
  assert render('{{ bos_token }}', 'Hi') == '<s>'
  assert chat_template._process is first
  os.kill(first._process.pid, signal.SIGKILL)
  first._process.wait()
  assert render('{{ bos_token }}', 'Hi') == '<s>'
  assert chat_template._process is not first


def test_an_answer_that_nobody_read_is_nobodys(monkeypatch):
  """As where Ctrl-C or a caller's timeout comes while it is waited for."""
  assert render('{{ bos_token }}', 'Hi') == '<s>'

  def interrupted(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(chat_template._Process, '_read', interrupted)
    with pytest.raises(KeyboardInterrupt):
      render('{{ messages[0].content }}', 'mine')
  for prompt in ('yours', 'theirs'):
    assert render('{{ messages[0].content }}', prompt) == prompt


_ALONE = """
import os, sys
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
from specdiff_jax.text import chat_template
print(chat_template.render('{{ a }}', {'a': 'text'}))
print(chat_template._process._process.pid)
"""


@pytest.mark.parametrize('end', ['', 'os._exit(1)'])
def test_it_needs_no_working_directory_and_ends_with_its_parent(
  root, tmp_path, end
):
  gone = tmp_path / 'gone'
  gone.mkdir()
  done = subprocess.run(
    [sys.executable, '-c', _ALONE + 'sys.stdout.flush()\n' + end, str(gone)],
    env=os.environ | {'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  text, pid = done.stdout.split()
  assert text == 'text', done.stderr
  for _ in range(200):
    try:
      os.kill(int(pid), 0)
    except ProcessLookupError:
      break
    time.sleep(0.05)
  else:
    pytest.fail('the process has not ended')


def test_what_a_template_reads():
  template = (
    '{% if not a is defined %}{% set a = 1 %}{% endif %}{{ a }}{{ range(1) }}'
    '{% for m in messages %}{% if m.b %}{% set c = m.b %}{% endif %}{{ c }}'
    '{% generation %}{{ m[d|default(1)] }}{% endgeneration %}{% endfor %}'
  )
  likely = dict.fromkeys(('a', 'd', 'messages'), True)
  assert chat_template.reads(template) == likely | {'c': False}
  with pytest.raises(chat_template.Error, match='Expected an expression'):
    chat_template.reads('{% if %}')
  with pytest.raises(chat_template.Error):  # within the limits of a text
    chat_template.reads('{{ 3 ** 400000000 }}')
  assert chat_template.reads('{{ e }}') == {'e': True}


def test_how_long_a_text_may_be():
  """It is tokenised in this process, where nothing limits that."""
  template = '{% for i in range(N) %}{{ "x" * 65536 }}{% endfor %}'
  assert len(chat_template.render(template.replace('N', '16'), {})) == 1 << 20
  with pytest.raises(chat_template.Error, match='writes more than 1 MiB'):
    chat_template.render(template.replace('N', '17'), {})
