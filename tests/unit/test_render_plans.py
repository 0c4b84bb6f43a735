"""A text put together from what a template printed is the text that its HTML converts to, whatever is printed."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgmail.errors import TemplateFault
from pgmail.render import textplan
from pgmail.render.templates import Bundle, Rendered, Source, compile_bundle, complete
from pgmail.render.totext import text_from_html

NICE = ["Ada", "Ada Lovelace", "Pot & pan", "O'Brien", "https://x.example/a?b=1&c=2", "a@b.example", 7, 2.5]
VALUES = [
    *NICE, "", " ", " x", "x  y", "a\nb", "<b>", "\xa0", "a\u2003b", "x" * 1_200, "lt", "lt;", "&lt", "#39;", "&amp;",
    "javascript:x", "script:", "#top", "x.example", "X.EXAMPLE/", "é", "İ", "ς Σ", "--", "x=", "/", "\ue000", "\x1c",
    None, True, ["a", "<"],
]  # fmt: skip
PIECES = re.findall(
    r"\S+",
    """<p> </p> <div> </div> <table> <tr> <td> <td_class="@"> </td> <ul> </ul> <ol> <ol_start="@"> <li> <pre> </pre>
    <br> <hr> <blockquote> </blockquote> <a_href="https://x.example/@"> <a_href="@"> <a_href='#@'> <a_href="ja@">
    <a_href="mailto:@"> <a_href="https://@"> <a_href="@@"> <a_@_href="https://q"> <a_x=_y="@"_href="https://k"> </a>
    <img_alt="@"> <img_alt=@> <img_@="x"> <!-- --> <!--@--> <!doctype_html> <!@> <!-@ < > </ <@ </@ <h@> </p@> " ' = &
    &# &l &amp; &nbsp; ; lt; <script> </script> <style>@</style> <title>@</title> <head> </head> <body> word
    x.example @ @ @ @ @|safe {%if_c%} {%for_i_in_l%} {%end%}""",
)


def template(pieces: list[str]) -> str:
    """A template from `pieces`; each "@" prints one of the names v0, v1 and v2."""
    opened: list[str] = []
    out: list[str] = []
    for piece in pieces:
        made = piece.replace("_", " ")
        if made == "{%end%}":
            made = "{% " + opened.pop() + " %}" if opened else ""
        elif made.startswith("{%"):
            opened.append("endif" if "if c" in made else "endfor")
        elif made == "@|safe":
            made = "{{ v0|safe }}"
        out.append(re.sub("@", f"{{{{ v{len(out) % 3} }}}}", made))
    return "".join(out) + "".join("{% " + end + " %}" for end in reversed(opened))


values = st.fixed_dictionaries(
    {
        name: st.sampled_from(NICE) | st.sampled_from(VALUES) | st.text(max_size=8)
        for name in ("v0", "v1", "v2")
    }
    | {"c": st.booleans(), "l": st.sampled_from([[], [1], [1, 1]])}
)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([*PIECES, " ", "\n", "two words"]), max_size=14).map(template),
    st.lists(values, min_size=3, max_size=6),
)
@example(
    '<a href="{{ v0 }}">{{ v1 }}</a>', [{"v0": "https://a", "v1": v} for v in ("x", "y", "https://a", "a")]
)
@example("&#" + "1" * 5_000 + "{{ v0 }}", [{"v0": "a & b"}] * 3)
@example("&{{ v0 }}", [{"v0": "x"}, {"v0": "x"}, {"v0": "lt"}])
def test_whatever_is_printed_the_text_is_that_of_the_html(source, mails) -> None:
    try:
        compiled = compile_bundle(Bundle(Source(html=source)))
    except TemplateFault:
        return  # "{" and "%" met by chance
    for variables in mails:
        rendered = compiled.render(variables, with_text=True)
        assert rendered.text == text_from_html(rendered.html)
        assert rendered.html == compiled.render(variables).html


MAIL = """<!doctype html><html><head><title>{{ shop }}</title><style>p { color: {{ colour }} }</style></head><body>
{% macro cell(x) %}<td class="{{ x }}">{{ x }}</td>{% endmacro %}
<h1>Hi {{ name }},</h1><p>your order <b>{{ order }}</b>: <a href="https://x.example/o?a=1&id={{ order }}">see it</a>,
or {{ shop }} at <a href="{{ url }}">our shop</a>.</p><ul>{% for i in items %}<li>{{ i.name }}: {{ i.price }}</li>
{% endfor %}</ul>{% include 'foot' %}</body></html>"""


def test_an_ordinary_mail_is_converted_for_its_first_render_only(monkeypatch) -> None:
    converted: list[str] = []

    def spy(html: str) -> str:
        converted.append(html)
        return text_from_html(html)

    monkeypatch.setattr("pgmail.render.templates.text_from_html", spy)
    compiled = compile_bundle(Bundle(Source(html=MAIL), {"foot": Source(html="<p>{{ shop }}</p>")}))
    for number in range(5):
        rendered = compiled.render(
            {
                "name": f"Zoë O'Neil {number}",
                "order": number,
                "shop": "Pots & Pans",
                "colour": "red",
                "url": f"https://x.example/{number}",
                "items": [{"name": f"Cup {number}", "price": 3}],
            },
            with_text=True,
        )
        assert rendered.text == text_from_html(rendered.html)
        assert f"Hi Zoë O'Neil {number}," in rendered.text
        assert f"our shop <https://x.example/{number}>" in rendered.text
    assert len(converted) == 1


@pytest.mark.parametrize("url", ["https://x.example", "x.example", "#top", "javascript:x()", "has blank", ""])
def test_whether_a_link_is_shown_is_decided_for_each_mail(url) -> None:
    compiled = compile_bundle(Bundle(Source(html='<a href="{{ url }}">{{ shown }}</a> end')))
    for value in ("https://one.example", "https://two.example", "https://three.example", url):
        rendered = compiled.render({"url": value, "shown": "x.example"}, with_text=True)
        assert rendered.text == text_from_html(rendered.html)


def test_a_template_with_ever_new_shapes_keeps_a_bounded_number() -> None:
    compiled = compile_bundle(Bundle(Source(html="{% for i in range(n) %}<p>{{ i }}</p>{% endfor %}")))
    for n in range(200):
        rendered = compiled.render({"n": n}, with_text=True)
        assert rendered.text == "\n\n".join(map(str, range(n)))
    assert len(compiled._plans._known) <= textplan._MAX_SHAPES


def test_a_text_part_that_there_is_is_left_alone() -> None:
    for source in (
        Source("s", "t {{ x }}", "<p>{{ x }}</p>"),
        Source("s", "", "{{ x }}"),
        Source("s {{ x }}", None, None),
    ):
        compiled = compile_bundle(Bundle(source))
        assert compiled.render({"x": 1}, with_text=True) == compiled.render({"x": 1})
    literal = compile_bundle(Bundle(Source(html="<p>Hi</p>")))
    assert (
        literal.render({}, with_text=True)
        == complete(literal.render({}))
        == Rendered(None, "Hi", "<p>Hi</p>")
    )


def test_a_fault_is_the_same_with_and_without_text() -> None:
    compiled = compile_bundle(Bundle(Source(html="<p>\n{{ x }}{{ y }}")))
    for with_text in (False, True):
        with pytest.raises(TemplateFault) as caught:
            compiled.render({"x": 1}, with_text=with_text)
        assert (caught.value.kind, caught.value.line) == ("missing_variable", 2)
