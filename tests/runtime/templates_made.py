"""Chat templates in the manner of well-known families, written for these tests, and conversations to put into them."""

from typing import Any

TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}
<think>

</think>

{% endif %}
{% endif %}""",
    "llama": """{{- bos_token }}
{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = 'Today is ' ~ (strftime_now('%Y') | length) ~ ' digits long.' -%}
    {%- set rest = messages -%}
{%- endif -%}
<|head|>system<|end|>

{{ system }}{% if tools %}

{{ tools | tojson(indent=2) }}{% endif %}<|eot|>
{%- for message in rest -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('user and assistant must take turns, found ' + message.role) -}}
    {%- endif -%}
    <|head|>{{ message.role }}<|end|>{{ '\\n\\n' + message.content }}<|eot|>
{%- endfor -%}
{%- if add_generation_prompt %}<|head|>assistant<|end|>{{ '\\n\\n' }}{% endif -%}""",
    "gemma": """{{ bos_token }}{% set names = {'assistant': 'model'} %}
{%- for message in messages -%}
<turn>{{ names.get(message.role, message.role) }}
{% if message.content is string -%}
{{ message.content | trim }}
{%- else -%}
{%- for part in message.content -%}
{{ part.text if part.type == 'text' else '<' ~ part.type ~ '>' }}
{%- endfor -%}
{%- endif %}<end>
{% endfor %}
{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}""",
    "deepseek": """{%- set ns = namespace(is_first=true, system='') -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = ns.system ~ m.content ~ '\\n' -%}{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{%- set ns.is_first = false -%}<User>{{ m.content }}
  {%- elif m.role == 'assistant' -%}
    {%- set content = m.content.split('</think>')[-1] if '</think>' in m.content else m.content -%}
    <Assistant>{% generation %}{{ content }}{{ eos_token }}{% endgeneration %}
  {%- endif -%}
{%- endfor -%}
{% if add_generation_prompt and not ns.is_first %}<Assistant><think>{{ '\\n' }}{% endif %}""",
    "gpt_oss": """{%- macro channel(name, text) -%}<|channel|>{{ name }}<|message|>{{ text }}{%- endmacro -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}
Valid channels: {{ ['analysis', 'final'] | join(', ') }}.<|end|>
{%- for tool in tools or [] %}<|tool|>{{ tool.function.name }}({{ tool.function.parameters | tojson }}){% endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}{%- continue -%}{%- endif -%}
    {%- if message.role == 'assistant' -%}
        <|start|>assistant{{ channel('final', message.content) }}{{ '<|return|>' if loop.last else '<|end|>' }}
    {%- elif loop.index > 5 -%}{%- break -%}
    {%- else -%}
        <|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}""",
}

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place, at <b>once</b>",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "enum": ["Zürich", "東京"]}}},
    },
}


def said(*turns: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation of turns, the user's first."""
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*start, *({"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns))]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": said("  Hello \n"),
    "three": said("Hi", "<think>hm</think>Hello!", "And now?", system="Be brief."),
    "long": said("1", "2", "3", "4", "5", "6", "7"),
    "markup": said("<eos>{{ 7 * 7 }} {% if %} <script>&amp;\"'", "é数👩‍🚀\u2028", "\t\\n"),
    "empty": said("", "", ""),
}
