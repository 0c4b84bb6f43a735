"""Templates: what they render, which faults they have, what they need, how they are kept."""

# ruff: noqa: E501 - a table reads best with one case per line
from __future__ import annotations

import threading

import pytest
from jinja2 import Environment
from jinja2.runtime import Context
from markupsafe import Markup

from pgmail.errors import TemplateFault
from pgmail.render.cache import TemplateCache
from pgmail.render.context import PageContext
from pgmail.render.sandbox import Sandbox
from pgmail.render.templates import (
    Bundle,
    Compiled,
    Rendered,
    Source,
    check_source,
    compile_bundle,
    complete,
    referenced,
)

ITEMS = [{"name": "Cup", "price": 3}, {"name": "Pot", "price": 12.5}]


def html(source: str, variables=None, **others: str) -> str:
    bundle = Bundle(Source(html=source), {name: Source(html=other) for name, other in others.items()})
    rendered = compile_bundle(bundle).render(variables or {})
    assert rendered.subject is None
    assert rendered.text is None
    return rendered.html


def fault(source: Source, others=None, variables=None) -> TemplateFault:
    with pytest.raises(TemplateFault) as caught:
        compile_bundle(Bundle(source, others or {})).render(variables or {})
    return caught.value


def test_only_html_is_escaped_and_values_are_never_templates() -> None:
    compiled = compile_bundle(Bundle(Source("S {{ x }}", "T {{ x }}\n", "H {{ x }}\n")))
    assert compiled.render({"x": "<{{ y }}>"}) == Rendered(
        "S <{{ y }}>", "T <{{ y }}>\n", "H &lt;{{ y }}&gt;\n"
    )


def test_a_part_without_syntax_is_itself_and_an_absent_one_stays_absent() -> None:
    assert compile_bundle(Bundle(Source(subject="a { b } c", html=None))).render({}) == Rendered(
        "a { b } c", None, None
    )


def test_each_part_reaches_its_own_layouts() -> None:
    layout = Source(
        subject="[{% block b %}{% endblock %}]",
        text="({% block b %}{% endblock %})",
        html="<{% block b %}{% endblock %}>",
    )
    part = "{% extends 'layout' %}{% block b %}{{ n }}{% endblock %}"
    compiled = compile_bundle(Bundle(Source(part, part, part), {"layout": layout}))
    assert compiled.render({"n": 1}) == Rendered("[1]", "(1)", "<1>")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for i in items %}{{ loop.index }}/{{ loop.length }} {{ i.name }}{{ ', ' if not loop.last }}{% endfor %}", "1/2 Cup, 2/2 Pot"),
        ("{% for i in items if i.price > 5 %}{{ i.name }}{% else %}none{% endfor %}", "Pot"),
        ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is not number else x }}{% endfor %}", "123"),
        ("{{ '%.2f'|format(9.5) }} {{ '%s and %s' % (1, 2) }} {{ '%(a)s' % {'a': 1} }}", "9.50 1 and 2 1"),
        ("{{ '{:.2f} {n!r}'.format(9.5, n='a') }} {{ '{a}'.format_map({'a': 1}) }}", "9.50 &#39;a&#39; 1"),
        ("{{ ('<{}>'|safe).format('<') }} {{ ('<'|safe) ~ '<' }} {{ 'a' ~ 1 ~ none }}", "<&lt;> <&lt; a1None"),
        ("{{ ['<', 'b'|safe]|join(', ') }} {{ ','.join([1, 2]) }}", "&lt;, b 1,2"),
        ("{{ items|sum(attribute='price') }} {{ [1, 2]|sum(start=3) }}", "15.5 6"),
        ("{{ items|map(attribute='name')|join('+') }} {{ ['a']|map('upper')|first }}", "Cup+Pot A"),
        ("{{ items|selectattr('price', 'gt', 5)|map(attribute='name')|list }}", "[&#39;Pot&#39;]"),
        ("{{ [3, 1, 2]|sort|join }} {{ items|sort(attribute='price', reverse=true)|map(attribute='name')|join }}", "123 PotCup"),
        ("{{ items|join('-', attribute='name') }} {{ [1, 1, 'a', 'A', none, (1,), (1,)]|unique|length }}", "Cup-Pot 4"),
        ("{{ items|unique(attribute='name')|length }} {{ ['a', 'A']|unique(true)|length }}", "2 2"),
        ("{% for k, v in items|groupby('name') %}{{ k }}{{ v|length }}{% endfor %}", "Cup1Pot1"),
        ("{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}{{ d.get('z', 9) }}{{ d.keys()|list|length }}", "k=v91"),
        ("{% for k, v in d|dictsort %}{{ k }}{% endfor %}{{ d|items|list|length }}{{ zz|items|list|length }}", "k10"),
        ("{{ order.items }}{{ order.values()|length }}", "mine1"),
        ("{{ name.upper() }}{{ name.replace('A', 'E') }}{{ name|replace('a', '<') }}{{ 'a<'|safe|replace('a', '>') }}", "ADAEdaAd&lt;&gt;<"),
        ("{{ 'a-b'.split('-')|length }}{{ 'a b c'.split(none, 1)|length }}{{ 'a\nb'.splitlines()|last }}", "22b"),
        ("{{ '  x '.strip() }}{{ 'x'.center(3, '.') }}{{ '7'.zfill(3) }}{{ name.startswith(('A', 'B')) }}", "x.x.007True"),
        ("{{ [1, 2, 1].count(1) }}{{ (1, 2).index(2) }}", "21"),
        ("{{ name[0] }}{{ name[1:] }}{{ name[::-1] }}{{ items[0].name }}{{ items[-1]['name'] }}{{ items.0.price }}", "AdaadACupPot3"),
        ("{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -3 + 1 }}{{ 6 / 4 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ 'a' + 'b' }}", "331024-21.5abab[1, 2]ab"),
        ("{{ 1 if name == 'Ada' and 'd' in name and 2 not in [1] and 1 < 2 <= 2 else 2 }}", "1"),
        ("{{ 3 is odd }}{{ 'a' is in 'abc' }}{{ 4 is divisibleby 2 }}{{ zz is defined }}{{ none is none }}", "TrueTrueTrueFalseTrue"),
        ("{{ zz|default('x') }}{{ ''|d('y', true) }}{{ name if zz is defined }}", "xy"),
        ("{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ ns }}", "6&lt;namespace&gt;"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner() %}{{ j() }}{{ j() }}", "aba, "),
        ("{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }}{% endfor %}", "TrueaFalsebTruea"),
        ("{% macro m(a, b=2) %}[{{ a }}{{ b }}{{ caller() if caller is defined }}]{% endmacro %}{{ m(1) }}{% call m(0) %}c{% endcall %}", "[12][02c]"),
        ("{% filter upper %}a{{ name }}{% endfilter %}{% set q %}<b>{{ '<' }}{% endset %}{{ q }}", "AADA<b>&lt;"),
        ("{% with a = 1, b = name %}{{ a }}{{ b }}{% endwith %}", "1Ada"),
        ("{{ 'a b'|title }}{{ 'x y z'|truncate(4, true, '', 0) }}{{ ' x '|trim }}{{ '-x-'|trim('-') }}{{ 'aB'|lower }}{{ 'ab'|capitalize }}", "A Bx y xxabAb"),
        ("{{ 'x'|center(3) }}|{{ 'a\nb'|indent(2) }}|{{ 'a\nb'|indent('> ', true) }}", " x |a\n  b|&gt; a\n&gt; b"),
        ("{{ 'one two three'|wordwrap(7) }}|{{ 'abcdefgh ij'|wordwrap(3) }}|{{ 'abcdef'|wordwrap(3, false) }}|{{ 'a b'|wordcount }}", "one two\nthree|abc\ndef\ngh\nij|abcdef|2"),
        ("{{ '<p>a <!-- x -->&amp; b</p> <'|striptags }}{{ 'a<!-- '|striptags }}", "a &amp; b &lt;a"),
        ("{{ '7'|int }}{{ 'x'|int(3) }}{{ '1' * 400 |int }}{{ ('1' * 400)|int }}{{ '1.5'|float }}{{ ('1' * 400)|float }}", "73" + "1" * 400 + "01.50.0"),
        ("{{ 2.567|round(1) }}{{ 2.5|round(0, 'floor') }}{{ -3|abs }}{{ 1000|filesizeformat }}", "2.62.031.0 kB"),
        ("{{ d|tojson }}{{ [1]|tojson(2) }}", '{"k": "v"}[\n  1\n]'),
        ("{{ 'a b&c'|urlencode }}{{ {'a': 'b c'}|urlencode }}{{ 12|urlencode }}", "a%20b%26ca=b+c12"),
        ("{{ [1, 2]|reverse|join }}{{ 'ab'|reverse }}{{ [1, 2]|last }}{{ [2, 9, 3]|max }}{{ [2, 1]|min }}{{ 'abc'|length }}", "21ba2913"),
        ("{{ '<'|e }}{{ '<'|safe }}{{ '<'|safe|e }}{{ '<'|safe|forceescape }}{{ 5|string }}{{ 'a'|list }}", "&lt;<<&lt;5[&#39;a&#39;]"),
        ("{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1, 2, 3]|slice(2)|list }}{{ dict(a=1)|length }}{{ dict({'a': 1}, b=2).b }}", "[[1, 2], [3, 0]][[1, 2], [3]]12"),
        ("{% raw %}{{ x }}{% endraw %}{# gone #}{{ '{{' }}", "{{ x }}{{"),
        ("{{ self.t() }}{% block t %}{{ name }}{% endblock %}", "AdaAda"),
        ("{{ true }}{{ none }}{{ 1.50 }}{{ {'a': [1, (2,)]} }}", "TrueNone1.5{&#39;a&#39;: [1, (2,)]}"),
    ],
)  # fmt: skip
def test_what_templates_of_mails_do_works(source, expected) -> None:
    variables = {"items": ITEMS, "name": "Ada", "d": {"k": "v"}, "order": {"items": "mine"}}
    assert html(source, variables) == expected


def test_layouts_includes_and_imports_work_together() -> None:
    others = {
        "base": "<{% block a %}A{% endblock %}{% block b %}B{% endblock %}{{ name }}>",
        "mid": "{% extends 'base' %}{% block a %}mid {{ super() }}{% endblock %}",
        "inc": "[{{ name }}]",
        "macros": "{% macro m(x) %}({{ x }}){% endmacro %}{% set v = 'val' %}",
    }
    source = (
        "{% extends 'mid' %}{% import 'macros' as ms %}{% block b %}{% include 'inc' %}"
        "{% from 'macros' import m, v with context %}{{ m('<') }}{{ v }}{{ ms }}"
        "{% include ['none', 'inc'] %}{% include 'none' ignore missing %}{% endblock %}"
    )
    assert html(source, {"name": "N"}, **others) == "<mid A[N](&lt;)val[N]N>"


def test_an_imported_template_carries_nothing_to_the_next_mail() -> None:
    main = "{% import 'm' as m %}{{ m.count() }}"
    macros = (
        "{% set ns = namespace(n=0) %}{% macro count() %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endmacro %}"
    )
    compiled = compile_bundle(Bundle(Source(text=main), {"m": Source(text=macros)}))
    assert [compiled.render({}).text for _ in range(3)] == ["1", "1", "1"]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x00b", "a\x85b", "a\u2028b", "a\x7fb"])
def test_a_subject_with_a_line_end_is_unsafe(value) -> None:
    assert fault(Source(subject="Hi {{ x }}"), variables={"x": value}).kind == "unsafe"
    assert fault(Source(subject=f"Hi {value}")).kind == "unsafe"


def test_a_line_end_that_ends_a_subject_template_is_no_part_of_it() -> None:
    assert (
        compile_bundle(Bundle(Source(subject="Hi {{ x }}\n"))).render({"x": "ünï\xa0x"}).subject
        == "Hi ünï\xa0x"
    )


@pytest.mark.parametrize(
    ("source", "name", "line"),
    [
        ("a\n{{ who }}", "who", 2),
        ("{{ user.nme }}", "nme", 1),
        ("{{ user['x'] }}", "x", 1),
        ("{{ list[7] }}", "7", 1),
        ("\n\n{% for x in many %}{% endfor %}", "many", 3),
        ("{% if cond %}{% endif %}", "cond", 1),
        ("{{ a.b.c }}", "a", 1),
        ("{{ a.__x__ }}", "a", 1),
        ("{{ fn() }}", "fn", 1),
        ("{{ [nope]|sum }}", "nope", 1),
        ("{{ nope|sum(attribute='x') }}", "nope", 1),
        ("{{ nope ~ 'x' }}", "nope", 1),
        ("{{ nope * 2 }}", "nope", 1),
        ("{{ 'x' + nope }}", "nope", 1),
        ("{{ nope in [1] }}", "nope", 1),
        ("{{ '%s'|format(nope) }}", "nope", 1),
        ("{{ loop.index }}", "loop", 1),
    ],
)
def test_a_missing_variable_is_named(source, name, line) -> None:
    found = fault(Source(html=source), variables={"user": {}, "list": [1]})
    assert (found.kind, found.part, found.line) == ("missing_variable", "html", line)
    assert repr(name) in found.message or name in found.message


@pytest.mark.parametrize(
    ("value", "words"), [({}, "an object"), ([], "a list"), ("", "a text"), (7, "a number"), (None, "null")]
)
def test_what_is_missing_in_a_variable_is_told_by_the_words_of_json(value, words) -> None:
    found = fault(Source(text="{{ order.city.name }}"), variables={"order": value})
    assert f"'city' is missing in {words}" in found.message


@pytest.mark.parametrize("name", ["abs capitalize center count e escape first float forceescape int join last length list lower replace('a','b') reverse round safe sort string striptags sum title trim truncate upper urlencode wordcount wordwrap"][0].split())  # fmt: skip
def test_a_filter_called_strict_fails_on_what_is_missing(name) -> None:
    source = Source(text="{{ x|" + name + " }}")
    assert fault(source).kind == "missing_variable"
    assert check_source(source, {}) == {"x"}


@pytest.mark.parametrize(
    ("source", "kind", "line"),
    [
        ("{{ x", "syntax", 1),
        ("\n{% if %}", "syntax", 2),
        ("{% endfor %}", "syntax", 1),
        ("{{ x|nofilter }}", "syntax", 1),
        ("{% if false %}\n{{ x is notest }}{% endif %}", "syntax", 2),
        ("\n{% extends x %}", "syntax", 2),
        ("{% include 'a' ~ 'b' %}", "syntax", 1),
        ("{% import x as y %}", "syntax", 1),
        ("{% extends ['a'] %}", "syntax", 1),
        ("{% autoescape false %}{{ x }}{% endautoescape %}", "syntax", 1),
        ("{% block a %}{% endblock %}{% block a %}{% endblock %}", "syntax", 1),
        ("{% do x %}", "syntax", 1),
        ("{{ 1e999 }}", "syntax", 1),
        ("{{ " + "9" * 5000 + " }}", "syntax", None),
        ("\n{% include 'gone' %}", "unknown_template", 2),
        ("{% extends 'textless' %}", "unknown_template", 1),
        ("{% include 'self1' %}", "unsafe", 1),
        ("{{ 1 + 'a' }}", "error", 1),
        ("{{ 1 / 0 }}", "error", 1),
        ("{{ 'x'|join(1, 2, 3, 4) }}", "error", 1),
        ("{{ [1, 'a']|sort }}", "error", 1),
        ("{{ ['a']|sum }}", "error", 1),
        ("{{ 1|items }}", "error", 1),
        ("{{ '%s'|format(1, a=2) }}", "error", 1),
        ("{{ dict([1]) }}", "error", 1),
        ("{{ 'x'|center('a') }}", "error", 1),
        ("{% set x = 1 %}{% set x.y = 2 %}", "error", 1),
        ("{% block r required %}{% endblock %}", "error", 1),
    ],
)
def test_a_fault_has_its_kind_and_line(source, kind, line) -> None:
    others = {"textless": Source(text="x"), "self1": Source(html="{% include 'self2' %}"), "self2": Source(html="{% import 'self1' as x %}")}  # fmt: skip
    found = fault(Source(html=source), others)
    assert (found.kind, found.line) == (kind, line)
    if kind != "error":
        with pytest.raises(TemplateFault):
            check_source(Source(html=source), others)


def test_a_fault_in_another_template_says_where() -> None:
    found = fault(Source(text="{% include 'inc' %}"), {"inc": Source(text="\n{{ gone }}")})
    assert (found.kind, found.part, found.line) == ("missing_variable", "text", 2)
    assert "'inc'" in found.message


def test_templates_that_are_not_reached_are_not_compiled() -> None:
    compile_bundle(Bundle(Source(html="{{ x }}"), {"broken": Source(html="{% if")}))


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ("{{ a }}{{ b.c }}{{ d['e'] }}{{ f|upper }}", "a b d f"),
        ("{{ a is defined }}{{ b|default('x') }}{{ c.d|default('x') }}{{ e|d }}", ""),
        ("{% if a %}{{ b }}{% elif c %}{{ d }}{% else %}{{ e }}{% endif %}", "a"),
        ("{% if a is defined and a %}{{ a }}{% endif %}", ""),
        ("{% if a and b %}{% endif %}{% if c or d %}{% endif %}{% if not e %}{% endif %}", "a c e"),
        ("{% for x in a %}{{ x }}{{ b }}{% else %}{{ c }}{% endfor %}", "a"),
        ("{% for x in a|default([]) %}{% endfor %}{% for y in b.c if d %}{% endfor %}", "b"),
        ("{% set a = 1 %}{{ a }}{{ b }}", "b"),
        ("{{ a }}{% if x is defined %}{% set a = 1 %}{% endif %}", ""),
        ("{% set a = b %}{% set c = d.e %}{% set f = g ~ h %}", "d g h"),
        ("{% set a %}{{ b }}{% endset %}{% filter upper %}{{ c }}{% endfilter %}", "b c"),
        ("{{ a if b else c }}{{ (d or e).f }}", "b d"),
        ("{{ a + b * -c }}{{ d ~ e }}{{ f == g }}{{ h < i }}", "a b c d e f h"),
        ("{{ a(b, c.d) }}{{ range(e)|list }}{{ [f, g.h] }}", "a c g"),
        ("{% macro m(a) %}{{ a }}{{ b }}{% endmacro %}{{ m(c) }}", ""),
        ("{% call m() %}{{ a }}{% endcall %}", "m"),
        ("{% with a = b.c %}{{ a }}{{ d }}{% endwith %}", "b d"),
        ("{{ loop }}{{ self.x() }}{{ namespace }}{% block x %}{{ a }}{% endblock %}", "a"),
        ("{% extends 'base' %}{{ no }}{% block b %}{{ kid }}{% endblock %}", "base_var kid"),
        ("{% extends 'base' %}{% set base_var = 1 %}", "base_block"),
        ("{% if x is defined %}{% extends 'base' %}{% endif %}{{ y }}", ""),
        ("{% include 'inc' %}{% include 'inc' %}", "inc_var"),
        ("{% include 'inc' ignore missing %}{% include 'inc' without context %}{% include ['inc'] %}", ""),
        ("{% from 'mac' import f as g %}{% import 'mac' as h %}{{ g(1) }}{{ h }}", ""),
        ("{{ a|map(attribute='x')|join }}{{ b|length }}{{ c|tojson }}", "b"),
        ("{{ a[1:] }}{{ b is odd }}{{ c in d }}{{ e not in f }}{{ g == h }}", "a d f g"),
    ],
)
def test_what_is_certainly_needed_is_named_and_no_more(source, needed) -> None:
    others = {
        "base": Source(html="{{ base_var }}{% block b %}{{ base_block }}{% endblock %}"),
        "inc": Source(html="{{ inc_var }}"),
        "mac": Source(html="{% macro f(x) %}{{ x }}{{ y }}{% endmacro %}{{ z }}"),
    }
    found = check_source(Source(html=source), others)
    assert found == set(needed.split())
    if needed:
        # Without any one of them a render fails, whatever else it has.
        values = {name: {"c": {}, "e": 1} for name in "abcdefgh"}
        for name in found:
            bundle = Bundle(Source(html=source), others)
            with pytest.raises(TemplateFault):
                compile_bundle(bundle).render({k: v for k, v in values.items() if k != name})


def test_the_needs_of_all_parts_add_up() -> None:
    assert check_source(Source("{{ a }}", "{{ b }}", "{{ c }}"), {}) == {"a", "b", "c"}
    assert check_source(Source("plain", None, "plain"), {}) == frozenset()


def test_referenced_names_every_template_reached_directly() -> None:
    source = Source(
        subject="{% include 's' ignore missing %}",
        text="{% from 't' import x %}{% import 'u' as u %}",
        html="{% extends 'h' %}{% block b %}{% include ['i', 'j'] %}{% endblock %}",
    )
    assert referenced(source) == {"s", "t", "u", "h", "i", "j"}
    with pytest.raises(TemplateFault):
        referenced(Source(text="{% include x %}"))


def test_text_is_made_from_html_where_there_is_none() -> None:
    assert complete(Rendered("s", None, "<p>Hi</p>")) == Rendered("s", "Hi", "<p>Hi</p>")
    for rendered in (Rendered("s", "t", "<p>Hi</p>"), Rendered("s", None, None), Rendered(None, "", "x")):
        assert complete(rendered) is rendered


def test_the_cache_keeps_the_last_used_within_its_bounds() -> None:
    cache = TemplateCache(limit=2, limit_bytes=1_000)
    made = []

    def make(name, size=10):
        def run() -> Compiled:
            made.append(name)
            return Compiled(name, None, None, size)

        return run

    first = cache.get("a", make("a"))
    assert cache.get("a", make("a")) is first
    cache.get("b", make("b"))
    cache.get("a", make("a"))
    cache.get("c", make("c"))  # b goes
    assert made == ["a", "b", "c"]
    cache.get("b", make("b"))
    assert made == ["a", "b", "c", "b"]
    assert (len(cache), cache.held_bytes) == (2, 20)
    cache.get("huge", make("huge", 5_000))
    assert (len(cache), cache.held_bytes) == (1, 5_000)


def test_a_template_that_fails_is_not_kept() -> None:
    cache = TemplateCache()
    for _ in range(2):
        with pytest.raises(TemplateFault):
            cache.get("k", lambda: compile_bundle(Bundle(Source(html="{% if"))))
    assert len(cache) == 0


def test_a_template_made_twice_at_once_is_kept_once() -> None:
    cache = TemplateCache()
    other = Compiled("other", None, None, 1)

    def make() -> Compiled:
        cache.get("k", lambda: other)
        return Compiled("mine", None, None, 1)

    assert cache.get("k", make) is other
    assert cache.held_bytes == 1


def test_threads_share_a_compiled_template() -> None:
    compiled = compile_bundle(Bundle(Source(text="{% for i in range(50) %}{{ x }}{% endfor %}")))
    results: dict[int, set[str]] = {}

    def run(number: int) -> None:
        results[number] = {compiled.render({"x": number}).text for _ in range(20)}

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: {str(number) * 50} for number in range(4)}


def test_each_output_of_a_long_page_knows_its_line() -> None:
    source = "".join(f"{number} {{{{ v{number} }}}}\n" for number in range(700))
    values = {f"v{number}": number for number in range(700)}
    for missing in (0, 1, 99, 100, 350, 699):
        found = fault(Source(html=source), variables={k: v for k, v in values.items() if k != f"v{missing}"})
        assert (found.kind, found.line) == ("missing_variable", missing + 1)
    assert html(source, values) == "".join(f"{number} {number}\n" for number in range(700))


def test_a_name_printed_many_times_is_what_it_is_where_it_stands() -> None:
    source = (
        "{{ x }}{{ x }}{% set x = 'b<' %}{{ x }}-{{ x }}{% for x in [1, 2] %}{{ x }}{{ x }}{% endfor %}{{ x }}{{ x }}"
        "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{{ m('c') }}{{ m(x) }}{% with x = 'd' %}{{ x }}{{ x }}{% endwith %}"
    )
    assert html(source, {"x": "a&"}) == "a&amp;a&amp;b&lt;-b&lt;1122b&lt;b&lt;ccb&lt;b&lt;dd"


@pytest.mark.parametrize(
    "value", ["", "a", "&", '<a href="x">\'', 3, -1, 2.5, True, None, [1, "<"], {"a": "'"}, Markup("<b>")]
)
def test_what_is_printed_is_what_jinja_prints(value) -> None:
    for autoescape in (False, True):
        part = "html" if autoescape else "text"
        expected = Environment(autoescape=autoescape).from_string("[{{ x }}]").render(x=value)
        rendered = compile_bundle(Bundle(Source(**{part: "[{{ x }}]"}))).render({"x": value})
        assert getattr(rendered, part) == expected


def test_a_context_of_ours_has_all_that_a_context_of_jinja_has() -> None:
    sandbox = Sandbox(html=True, keep_trailing_newline=True)
    given = (sandbox, {"x": 1}, "name", {"b": lambda _: iter(())}, sandbox.globals)
    ours, theirs = PageContext(*given), Context(*given)
    assert set(vars(ours)) == set(vars(theirs))
    for name, value in vars(theirs).items():
        if name != "eval_ctx":
            assert getattr(ours, name) == value
    assert vars(ours.eval_ctx) == vars(theirs.eval_ctx)
