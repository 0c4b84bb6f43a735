# ruff: noqa: E501 - pieces of templates, many to a line
"""Hundreds of payloads and bombs (`tests/attacks.py`), and random templates: a clear fault, soon, in little memory.

Memory is measured, not believed: by tracemalloc, and in a child process by the kernel's limit.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from contextlib import suppress
from time import thread_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmail.client_bodies import check_inline
from pgmail.errors import Refused, TemplateFault
from pgmail.render.templates import Bundle, Rendered, Source, check_between
from pgmail.worker.content import QUICK, Bounds
from tests.attacks import COMPILE_BOMBS, ESCAPES, LEAKS, RUNTIME_BOMBS

VARIABLES = {"x": "text", "names": ["a", "b"], "y": "1"}
SECONDS = 0.5  # of a thread's own time, for what a worker does between other mail; usual is a tenth of it
MEGABYTES = 60


def source(part: str, text: str) -> Source:
    return Source(subject=text, text="t") if part == "subject" else Source(**{"subject": "s", part: text})


def made(part: str, text: str, within: Bounds = QUICK) -> Rendered | TemplateFault:
    """What comes of a template as a worker makes it. What is no TemplateFault escapes, and fails the test."""
    try:
        return within.compile(Bundle(source(part, text), {})).render(
            VARIABLES,
            seconds=within.seconds,
            max_chars=within.max_chars,
            max_nodes=within.max_nodes,
            with_text=True,
        )
    except TemplateFault as fault:
        return fault


def test_there_are_enough_of_them():
    assert len(set(ESCAPES)) > 800
    assert len(set(RUNTIME_BOMBS)) > 130
    assert len(set(COMPILE_BOMBS)) > 80


@pytest.mark.parametrize("part", ["subject", "text", "html"])
def test_no_known_payload_reads_anything_but_its_own_data(part):
    leaky = {}
    for payload in ESCAPES:
        found = made(part, payload)
        said = (
            str(found) if isinstance(found, TemplateFault) else f"{found.subject} {found.text} {found.html}"
        )
        # A fault repeats names that stand in the template, and no more.
        leaks = [leak for leak in LEAKS if leak in said and leak not in payload and leak != "<class"]
        if leaks:
            leaky[payload] = said
    assert not leaky


@pytest.mark.parametrize("bombs", [RUNTIME_BOMBS, COMPILE_BOMBS], ids=["runtime", "compile"])
def test_no_bomb_keeps_other_mail_waiting(bombs):
    slow = {}
    for bomb in bombs:
        began = thread_time()
        made("html", bomb)
        if (took := thread_time() - began) > SECONDS:
            slow[bomb[:100]] = took
    assert not slow


@pytest.mark.parametrize("bombs", [RUNTIME_BOMBS, COMPILE_BOMBS], ids=["runtime", "compile"])
def test_no_bomb_takes_memory_from_other_mail(bombs):
    large = {}
    tracemalloc.start()
    try:
        for bomb in bombs:
            tracemalloc.reset_peak()
            made("text", bomb)
            if (peak := tracemalloc.get_traced_memory()[1] / 1e6) > MEGABYTES:
                large[bomb[:100]] = peak
    finally:
        tracemalloc.stop()
    assert not large


@pytest.mark.long
def test_within_its_full_bounds_no_bomb_breaks_a_process_of_bounded_memory():
    """As a process apart has it, with a third of its memory."""
    program = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from tests.unit.test_render_attacks import *
worst = 0.0
for bomb in (*RUNTIME_BOMBS, *COMPILE_BOMBS):
    began = time.thread_time()
    made("html", bomb, Bounds())
    worst = max(worst, time.thread_time() - began)
print(worst, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 4
    assert megabytes < 800


@pytest.mark.parametrize("bomb", COMPILE_BOMBS, ids=range(len(COMPILE_BOMBS)))
def test_the_door_looks_at_a_template_for_a_moment_only(bomb):
    body = {"subject": "s", "html": bomb, "variables": VARIABLES}
    began = thread_time()
    with suppress(Refused):
        check_inline(body)
    assert thread_time() - began < SECONDS * 2


def test_what_is_too_large_to_compile_at_the_door_is_left_to_a_worker_and_what_nobody_may_is_refused():
    assert check_between(Source("s", None, "{{ a }}" * 1_000)) == frozenset()
    assert check_between(Source("s", None, "{{ a }}" * 10)) == frozenset({"a"})
    for text in ("{{ a }}" * 10_000, "{{ a }}" + "x" * 1_000_001):
        with pytest.raises(TemplateFault) as caught:
            check_between(Source("s", None, text))
        assert caught.value.kind == "too_big"


def test_a_bundle_is_bounded_as_a_whole_however_many_pages_it_has():
    others = {f"page{n}": Source(html="{{ a }}" * 1_000) for n in range(10)}
    main = Source("s", None, "".join(f"{{% include '{name}' %}}" for name in others))
    with pytest.raises(TemplateFault) as caught:
        Bounds().compile(Bundle(main, others))
    assert caught.value.kind == "too_big"


# ------------------------------------------------------------------------------------------------ random templates
_VALUES = st.sampled_from(
    ["x", "names", "missing", "1", "-7", "99999", "1e300", "'ab'", "'%s{0}'", "[]", "{}", "[x, names]", "{'k': x}", "range(9999)",
     "range(99999)", "namespace(a=x)", "cycler(x, 1)", "joiner()", "loop", "self", "none", "true", "m", "caller", "'x' * 9999"]
)  # fmt: skip
_FILTERS = st.sampled_from(
    ["upper", "list", "join('x')", "center(999)", "indent(99)", "tojson", "batch(3)", "slice(9)", "unique", "sort", "reverse", "e", "safe",
     "replace('a', 'bcd')", "urlencode", "wordwrap(3)", "string", "length", "map('upper')", "map(attribute='a')", "sum", "groupby(0)",
     "format(1)", "int", "float", "round", "default(x)", "items", "first", "last", "striptags", "truncate(5)", "title", "max", "min", "trim"]
)  # fmt: skip


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(inner, _FILTERS).map(lambda p: f"({p[0]})|{p[1]}"),
        st.tuples(
            inner,
            st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]),
            inner,
        ).map(lambda p: f"(({p[0]}) {p[1]} ({p[2]}))"),
        st.tuples(inner, st.sampled_from(["a", "__class__", "append", "format", "index", "name", "b"])).map(
            lambda p: f"({p[0]}).{p[1]}"
        ),
        pair.map(lambda p: f"({p[0]})[{p[1]}]"),
        pair.map(lambda p: f"({p[0]})({p[1]})"),
        pair.map(lambda p: f"[{p[0]}, {p[1]}]"),
        pair.map(lambda p: f"{{{p[0]}: {p[1]}}}"),
        pair.map(lambda p: f"({p[0]} if {p[1]})"),
    )


_EXPRESSIONS = st.recursive(_VALUES, _grown, max_leaves=6)


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    both = st.tuples(_EXPRESSIONS, inner)
    return st.one_of(
        both.map(lambda p: f"{{% for i in {p[0]} %}}{p[1]}{{% endfor %}}"),
        both.map(lambda p: f"{{% for i in {p[0]} recursive %}}{p[1]}{{{{ loop([i]) }}}}{{% endfor %}}"),
        both.map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% endif %}}"),
        both.map(lambda p: f"{{% with a = {p[0]} %}}{p[1]}{{% endwith %}}"),
        both.map(lambda p: f"{{% macro m(a={p[0]}) %}}{p[1]}{{% endmacro %}}{{{{ m() }}}}"),
        both.map(lambda p: f"{{% macro m() %}}{p[1]}{{{{ m() }}}}{{% endmacro %}}{{{{ m({p[0]}) }}}}"),
        both.map(lambda p: f"{{% set n = namespace(v={p[0]}) %}}{{% for i in range(99) %}}{{% set n.v = n.v ~ n.v %}}{p[1]}{{% endfor %}}"),
        st.tuples(inner, inner).map("".join),
        inner.map(lambda t: f"{{% block b %}}{t}{{{{ self.b() }}}}{{% endblock %}}"),
        inner.map(lambda t: f"{{% filter upper %}}{t}{{% endfilter %}}"),
        inner.map(lambda t: f"{{% set y %}}{t}{{% endset %}}{{{{ y }}}}"),
    )  # fmt: skip


_TEMPLATES = st.recursive(
    st.one_of(_EXPRESSIONS.map(lambda e: f"{{{{ {e} }}}}"), st.text(max_size=5)), _nested, max_leaves=5
)


@settings(max_examples=120)
@given(text=_TEMPLATES, part=st.sampled_from(["text", "html"]))
def test_a_random_template_raises_nothing_but_our_fault_in_bounded_time_and_memory(text, part):
    began = thread_time()
    made(part, text)
    assert thread_time() - began < SECONDS
    tracemalloc.start()
    try:
        made(part, text)
        assert tracemalloc.get_traced_memory()[1] / 1e6 < MEGABYTES
    finally:
        tracemalloc.stop()
