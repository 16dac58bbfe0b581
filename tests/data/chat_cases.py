"""Templates of the shapes that models bring, written for these tests, and conversations to render with them.

`python tests/parity/chat.py` renders them with `transformers` into chat_golden.json.
"""

from pathlib import Path

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

CHATML_MARKED = """\
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}
    {{- 'Tools: ' + tools | tojson(indent=2) }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INST = """\
{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}
{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}
{% set rest = messages %}
{% set system = '' %}
{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant/user') }}
{% endif %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- ' ' + message['content'].strip() + ' ' + eos_token -}}
{% endif %}
{% endfor %}
"""

TURNS = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

LOOPS = """\
{%- set seen = namespace(turns=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set seen.turns = seen.turns + 1 %}
    {{- seen.turns }}{{ message | tojson }}{{ ' <&> ' ~ message.content.split('>')[-1] }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "chatml_marked": CHATML_MARKED,
    "headers": HEADERS,
    "inst": INST,
    "turns": TURNS,
    "zephyr": ZEPHYR,
    "loops": LOOPS,
}

BOS, EOS = "<s>", "</s>"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>")
OURS = Path(__file__).resolve().parents[2] / "data" / "chat_template.jinja"

SYSTEM = {"role": "system", "content": "Answer in one word."}
NO_THINK = {"role": "system", "content": "Answer in one word. /no_think"}
OVERRIDE = {"role": "system", "content": "Only this. /system_override"}
TWO = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": 'Four, 四 <b>&</b> "4".'}]
FOUR = [
    *TWO,
    {"role": "user", "content": "  And 3 + 3?\n"},
    {"role": "assistant", "content": "def six():\n    return 6"},
]
THOUGHT = [TWO[0], {**TWO[1], "reasoning_content": "Two and two.\n"}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 3, "b": 3}}}],
}
TOOL = [*TWO, FOUR[2], CALL, {"role": "tool", "content": "6"}, FOUR[3]]
SCHEMA = {"name": "add", "description": "Adds <a> & <b>.", "parameters": {"a": "int", "b": "int"}}

# Messages, and variables of the template.
CONVERSATIONS = {
    "one": (TWO[:1], {"date": "1 May 2026"}),
    "two": (TWO, {"date": "1 May 2026"}),
    "system": ([SYSTEM, *TWO], {"date": "1 May 2026", "enable_thinking": False}),
    "three": (FOUR[:3], {"date": "1 May 2026", "enable_thinking": True}),
    "four": (FOUR, {"date": "1 May 2026", "enable_thinking": False}),
    "system_four": ([SYSTEM, *FOUR], {"date": "1 May 2026"}),
    "no_think": ([NO_THINK, *FOUR], {"date": "1 May 2026"}),
    "override": ([OVERRIDE, *FOUR], {"python_tools": ["add(a, b)"]}),
    "thought": (THOUGHT, {"date": "1 May 2026"}),
    "not_thought": ([NO_THINK, *THOUGHT], {"date": "1 May 2026"}),
    "tools": (TOOL, {"date": "1 May 2026", "tools": [SCHEMA], "python_tools": ["add(a, b)"]}),
    "late_system": ([*TWO, SYSTEM], {"date": "1 May 2026"}),
    "not_alternating": ([TWO[0], TWO[0]], {"date": "1 May 2026"}),
    "first_assistant": (TWO[1:], {"date": "1 May 2026"}),
    "unknown_role": ([*TWO, {"role": "judge", "content": "Right."}], {"date": "1 May 2026"}),
}
