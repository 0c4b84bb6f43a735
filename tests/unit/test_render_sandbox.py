"""A hostile template harms nobody: a clear fault, soon, in little memory. Only strangers would write these."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from itertools import count
from time import process_time

import pytest

from pgmail.errors import TemplateFault
from pgmail.render import bounds
from pgmail.render.codegen import KNOWN_NODES
from pgmail.render.filters import FILTERS, TESTS
from pgmail.render.templates import Bundle, Source, check_source, compile_bundle

VARIABLES = {"name": "Ada", "items": [{"a": 1}], "d": {"k": "v"}, "when": datetime(2026, 1, 1, tzinfo=UTC)}


def attack(source: str, others=None, **limits) -> TemplateFault:
    named = {name: Source(html=other) for name, other in (others or {}).items()}
    with pytest.raises(TemplateFault) as caught:
        compile_bundle(Bundle(Source(html=source), named)).render(VARIABLES, **limits)
    return caught.value


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ d.__class__ }}{{ d['__init__'] }}",
        "{{ [].__len__() }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0[__class__]}'.format('') }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ ('{0.__class__}'|safe).format(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ range.__call__ }}",
        "{{ namespace.__init__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ name.format.__self__ }}",
        "{% macro m() %}{% endmacro %}{{ m._func }}{{ m.__globals__ }}",
        "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ items|map(attribute='__class__')|first }}",
        "{{ items.append(1) }}",
        "{{ items.clear() }}",
        "{{ d.update({'k': 2}) }}",
        "{{ d.pop('k') }}",
        "{{ d.setdefault('k', 2) }}",
        "{{ name.encode() }}",
        "{{ name.translate({}) }}",
        "{{ name.rfind('a') }}",
        "{{ name.expandtabs(9) }}",
        "{{ when.strftime('%9999999999d') }}",
        "{{ when.year }}",
        "{{ name() }}",
        "{{ (1)() }}",
        "{{ 1 .to_bytes(10, 'big') }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%.*f' % (999999999, 1) }}",
        "{{ '%(a(b)c)99999d' % {'a(b)c': 1} }}",
        "{{ {[1][0] * 2 ** 200: 1} }}",
        "{{ {(1, 2): 1} }}",
    ],
)
def test_what_is_not_for_templates_is_unsafe(source) -> None:
    assert attack(source).kind == "unsafe"


@pytest.mark.parametrize(
    "source",
    [
        "{{ config }}",
        "{{ lipsum() }}",
        "{{ context }}",
        "{{ environment }}",
        "{{ __builtins__ }}",
        "{% for x in [1] %}{% endfor %}{{ __import__('os') }}",
    ],
)
def test_there_is_nothing_to_reach_for(source) -> None:
    assert attack(source).kind == "missing_variable"


BIG = "{% set s = 'aaaaaaaaaa' * 400000 %}"
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% for i in range(0, 10 ** 30) %}x{% endfor %}",
    "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
    "{% for x in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x = x ~ x %}" * 40,
    "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x = x + x %}" * 40,
    "{% set x = 'a' %}" + "{% set x = x.replace('a', 'aaaaaaaa') %}" * 20,
    "{% set x = 'a' %}" + "{% set x = x|replace('', 'aaaaaaaa') %}" * 20,
    "{% set x = '&' %}" + "{% set x = x|e ~ x|forceescape ~ x|tojson %}" * 40,
    "{% set x = 'aa' %}" + "{% set x = x.join(x) %}" * 9,
    "{% set x = '{0}{0}{0}{0}{0}{0}{0}{0}' %}" + "{% set x = x.format(x) %}" * 40,
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set x = [1, 2] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "{% set x = [1, 2] %}" + "{% set x = (x, x) %}" * 60 + "{{ x == x }}",
    "{% set x = {} %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x|tojson }}",
    "{% set x = {} %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x }}",
    "{% set x = [1, 2] %}" + "{% set x = x + x %}" * 40,
    "{% set x = [1] %}" + "{% set x = [x] %}" * 60 + "{{ x }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'a' }}",
    "{{ [1] * 10 ** 6 }}",
    "{{ ('aaaaaaaaaa' * 400000,) * 100 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ (2 ** 1000) ** 1000 }}",
    "{{ 2 ** 1000 * 2 ** 1000 }}",
    "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{{ 5|round(-10 ** 9) }}",
    "{{ 5|round(10 ** 9, 'ceil') }}",
    "{{ 'x'|center(10 ** 9) }}",
    "{{ 'x'.ljust(10 ** 9) }}{{ 'x'.zfill(10 ** 9) }}",
    "{{ 'x'|indent(10 ** 9) }}",
    "{{ ('\n' * 400000)|indent(900) }}",
    "{{ ('\n' * 400000)|indent('a' * 900, true) }}",
    "{{ 'x'|wordwrap(10 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%-999999999s'|format(1) }}",
    "{{ '%.999999999f' % 1 }}",
    "{{ '%(a)999999999d' % {'a': 1} }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=999999999) }}",
    "{{ '{:.999999999f}'.format(1.0) }}",
    "{{ ('{:>999999999}'|safe).format(1) }}",
    "{{ ('%s' * 9999) % ((name * 9999,) * 9999) }}",
    "{{ ('{0}' * 9999).format(name * 9999) }}",
    "{{ ('{{' * 90000).format() }}{{ ('%%' * 90000) % () }}",
    "{{ [1]|batch(10 ** 9, 0)|list }}",
    "{{ [1]|slice(10 ** 9)|list }}",
    "{{ d|tojson(indent=10 ** 9) }}",
    "{{ items|map(attribute='a.' * 300)|list }}",
    "{{ items|sort(attribute='a,a,a,a,a,a,a,a,a') }}",
    "{{ items|sum(attribute='a.' * 9999) }}",
    "{{ ('a' * 99999).strip('b' * 99999) }}",
    "{{ ('a' * 99999)|trim('b' * 99999) }}",
    "{{ range(0, 2305843009213693951 * 90000, 2305843009213693951)|unique }}",
    BIG + "{{ s }}{{ s }}",
    "{% set s = '&<&<&<&<&<' * 400000 %}" + "{{ s }}" * 150,
    BIG + "{% for i in range(99999) %}<{{ s }}>{{ s }}{% endfor %}",
    BIG + "{% macro m() %}" + "{{ s }}" * 150 + "{% endmacro %}{{ m() }}",
    BIG + "{{ s.split('a')|length }}",
    BIG + "{{ s|list }}",
    BIG + "{{ s.splitlines() }}",
    BIG + "{{ s|wordcount }}",
    BIG + "{{ s|urlencode }}",
    BIG + "{{ [s, s]|urlencode }}",
    BIG + "{{ s|indent }}",
    BIG + "{{ s % 1 }}",
    BIG + "{{ range(9)|map('replace', 'a', s)|list }}",
    BIG + "{{ range(9999)|map('default', s)|list }}{{ ([s] * 1)|map('upper')|list|join(s) }}",
    BIG + "{% for i in range(99999) %}{% set t = s ~ i %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set t = s == s ~ '' %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set t = s.upper() %}{% endfor %}",
    BIG + "{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    BIG + "{% macro m() %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endmacro %}{{ m() }}",
    BIG + "{% set t %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    BIG + "{% filter upper %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endfilter %}",
    "{{ range(99999)|map('string')|map('center', 900)|list }}",
    "{{ range(99999)|map('string')|join('a' * 900) }}",
    "{% set r = range(99999)|list %}" + "{% set x = 1.5 in r %}" * 2000,
    "{% set r = range(99999)|list %}{{ [r, r] }}",
    "{{ " + "9" * 4000 + " }}",
    "{{ 0x" + "f" * 5000 + " }}",
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ " + " + ".join(["1"] * 3000) + " }}",
    "{{ " + "-" * 3000 + "1 }}",
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{ a }}" * 30_000,
    "x" * 1_000_001 + "{{ a }}",
    "{" * 5000 + "{{",
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_what_would_take_for_ever_or_all_memory_is_stopped(source) -> None:
    start = process_time()
    found = attack(source)
    assert found.kind in ("too_big", "too_slow"), str(found)
    assert process_time() - start < 3  # most of it compiling the largest ones on a busy machine


@pytest.mark.parametrize("source", [case for case in HOSTILE if BIG in case and "for" in case])
def test_memory_stays_within_a_multiple_of_the_output_allowed(source) -> None:
    tracemalloc.start()
    try:
        attack(source, seconds=5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000


@pytest.mark.parametrize("value", ["s", "[s]", "s|safe", "s|upper", "s|tojson"])
@pytest.mark.parametrize("part", ["subject", "text", "html"])
@pytest.mark.parametrize("character", ["a", "&"])
def test_one_output_of_many_long_values_does_not_fill_the_memory(part, value, character) -> None:
    source = Source(
        **{part: f"{{% set x = {value} %}}{{{{ 0 }}}}" + "{{ x }} " * 150 + f"{{{{ {value} }}}}" * 150}
    )
    compiled = compile_bundle(Bundle(source))
    long = character * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(TemplateFault) as caught:
            compiled.render({"s": long}, seconds=5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.kind == "too_big"
    assert peak < 100_000_000


def test_includes_that_multiply_are_stopped() -> None:
    others = {f"t{i}": f"{{% include 't{i + 1}' %}}" * 2 for i in range(40)} | {"t40": ""}
    assert attack("{% include 't0' %}", others).kind == "too_slow"
    check_source(
        Source(html="{% include 't0' %}"), {name: Source(html=text) for name, text in others.items()}
    )


def test_imports_that_print_without_end_are_stopped() -> None:
    others = {"m": "{% for i in range(99999) %}" + "x" * 900_000 + "{% endfor %}"}
    assert attack("{% import 'm' as m %}{{ m }}", others).kind == "too_big"


@pytest.mark.parametrize("source", ["{% include 'a' %}", "{% import 'a' as a %}", "{% extends 'a' %}"])
def test_a_template_that_reaches_itself_is_refused_when_compiled(source) -> None:
    others = {"a": Source(html="{% if false %}{% include 'b' %}{% endif %}"), "b": Source(html=source)}
    with pytest.raises(TemplateFault, match="reaches itself"):
        check_source(Source(html=source), others)


def test_limits_are_the_callers_to_choose() -> None:
    compiled = compile_bundle(Bundle(Source(text="{% for i in range(9999) %}{{ i }}{% endfor %}")))
    assert len(compiled.render({}).text) > 30_000
    for limits, kind in (({"max_chars": 1_000}, "too_big"), ({"seconds": 0.0}, "too_slow")):
        with pytest.raises(TemplateFault) as caught:
            compiled.render({}, **limits)
        assert caught.value.kind == kind


def test_a_render_that_waits_for_a_processor_is_not_too_slow(monkeypatch) -> None:
    clock = count(0, 100)  # each look at the wall clock is 100 s later
    monkeypatch.setattr(bounds, "monotonic", lambda: next(clock))
    source = "{% macro m() %}x{% endmacro %}{% for i in range(99) %}{{ m() }}{% endfor %}"
    assert compile_bundle(Bundle(Source(text=source))).render({}, seconds=5).text == "x" * 99


def test_one_budget_of_time_is_for_all_parts() -> None:
    slow = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    compiled = compile_bundle(Bundle(Source("ok {{ 1 }}", slow, "{{ 1 }}")))
    with pytest.raises(TemplateFault) as caught:
        compiled.render({}, seconds=0.05)
    assert (caught.value.kind, caught.value.part) == ("too_slow", "text")


def test_an_object_given_as_a_value_prints_and_no_more() -> None:
    compiled = compile_bundle(Bundle(Source(text="{{ when }}")))
    assert compiled.render(VARIABLES).text == "2026-01-01 00:00:00+00:00"


def test_a_value_that_fails_to_print_is_a_fault() -> None:
    class Broken:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def __str__(self) -> str:
            raise self.error("no")

    compiled = compile_bundle(Bundle(Source(text="{{ x }}")))
    for error, kind in ((RecursionError, "too_big"), (MemoryError, "too_big"), (OSError, "error")):
        with pytest.raises(TemplateFault) as caught:
            compiled.render({"x": Broken(error)})
        assert caught.value.kind == kind


def test_guarded_functions_do_not_run_uncounted() -> None:
    with pytest.raises(LookupError):
        bounds.weigh([1])
    with pytest.raises(LookupError):
        FILTERS["center"]("x", 10)


def test_every_filter_test_and_node_of_the_engine_is_either_known_or_left_out() -> None:
    from jinja2 import nodes
    from jinja2.filters import FILTERS as ALL
    from jinja2.tests import TESTS as ALL_TESTS

    assert set(ALL) - set(FILTERS) == {"attr", "pprint", "random", "urlize", "xmlattr"}
    assert set(FILTERS) <= set(ALL)
    assert set(ALL_TESTS) - set(TESTS) == {"callable", "filter", "test"}
    every = {
        name
        for name, kind in vars(nodes).items()
        if isinstance(kind, type) and issubclass(kind, nodes.Node) and not kind.abstract
    }
    left_out = """Break Continue ContextReference DerivedContextReference EnvironmentAttribute
    EvalContextModifier
        ExtensionAttribute ImportedName InternalName MarkSafe MarkSafeIfAutoescape OverlayScope Scope
        ScopedEvalContextModifier"""
    assert every - KNOWN_NODES == set(left_out.split())
