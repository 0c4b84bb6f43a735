"""Text made from HTML reads well, whatever the HTML, and takes time in proportion to it."""

from __future__ import annotations

import re
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmail.render.textpage import Page
from pgmail.render.totext import Scan, text_from_html


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("<p>one</p><p>two</p>", "one\n\ntwo"),
        ("<div>one</div><div>two</div>", "one\ntwo"),
        ("a<br>b<br/><br>c", "a\nb\n\nc"),
        ("  lots \n of\t blanks  ", "lots of blanks"),
        ("<b>bold</b>, <i>it</i>alic", "bold, italic"),
        ("one<b> two </b>three", "one two three"),
        ("&lt;b&gt; &amp; &eacute; &#x1F389;", "<b> & é 🎉"),
        ("a&nbsp;b", "a\xa0b"),
        ("&#" + "1" * 5000 + ";", "&#" + "1" * 5000 + ";"),
        ("<h1>Title</h1>text", "Title\n\ntext"),
        ("<ul><li>a</li><li>b</li></ul>c", "- a\n- b\n\nc"),
        ("<ol><li>a<li>b</ol>", "1. a\n2. b"),
        ("<ol start=7><li>a</ol><ol start='x'><li>b</ol>", "7. a\n\n1. b"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "- a\n  - b\n- c"),
        ("<li>lone</li>", "- lone"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a  b\nc"),
        ('<a href="https://x.example/a?b=1&amp;c=2">here</a>', "here <https://x.example/a?b=1&c=2>"),
        ('<a href="https://x.example/">https://x.example</a>', "https://x.example"),
        ('<a href="https://x.example/">x.example</a>', "x.example"),
        ('<a href="mailto:a@b.example">a@b.example</a>', "a@b.example"),
        ('<a href="#top">up</a> <a href="javascript:x()">no</a> <a name=x>anchor</a>', "up no anchor"),
        ('<a href="https://x.example"></a>', "<https://x.example>"),
        ('<a href="https://x.example">never closed', "never closed <https://x.example>"),
        ('<a href="https://x.example"><img alt="Buy"></a>', "Buy <https://x.example>"),
        ('<a href="https://x.example">two <b>words</b></a>.', "two words <https://x.example>."),
        ('<img src="a" alt="A logo"><img src="b"><img alt="">', "A logo"),
        ("<pre>a\n  b\n\nc</pre>d", "a\n  b\n\nc\n\nd"),
        ("<blockquote>q<blockquote>r</blockquote></blockquote>s", "> q\n\n> > r\n\ns"),
        ("<hr>", "-" * 20),
        ("a<hr>b", "a\n" + "-" * 20 + "\nb"),
        ("<head><title>t</title><meta x></head><body>b</body>", "b"),
        ("<head>never closed", "never closed"),
        ("<head><head>x", "x"),
        ("a<script>if (1 < 2) x('<p>')</script>b<STYLE>p{}</Style>c", "abc"),
        ("a<script>never closed", "a"),
        ("a<!-- c <b> -->b<!doctype x><?php ?>c", "abc"),
        ("a<!-- never closed", "a<!-- never closed"),
        ("a<!-- never > closed", "a"),
        ("1 < 2 > 0", "1 < 2 > 0"),
        ("a < b", "a < b"),
        ('<p title="a > b">x</p>', "x"),
        ('<p title="a < b > c">x</p>', "x"),
        ("<p title='unpaired>x</p>", "x"),
        ('<a href="https://x.example/<x>">y</a>', "y <https://x.example/<x>>"),
        ("</p></ul></a></blockquote></pre>x", "x"),
        ("<>x</>", "<>x</>"),
        ("<unknown>x</unknown>", "x"),
    ],
)
def test_html_becomes_readable_text(html, text) -> None:
    assert text_from_html(html) == text


def test_deep_nesting_is_drawn_to_a_depth_only() -> None:
    assert len(text_from_html("<ul><li>" * 3000 + "x")) < 200
    assert len(text_from_html("<blockquote>" * 3000 + "x")) < 200


@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<a ",
        '<a x="',
        '<a x=">" ',
        "<",
        "<!",
        "</",
        "<?",
        "&#1",
        "<head>",
        "<script ",
        "<a '\"",
        "<b <b>",
        "<pre>\n",
    ],
)
def test_time_grows_no_faster_than_the_input(piece) -> None:
    def seconds(times: int) -> float:
        html = piece * times + ">"
        start = process_time()
        text_from_html(html)
        return process_time() - start

    small, large = min(seconds(4_000), seconds(4_000)), min(seconds(32_000), seconds(32_000))
    # Quadratic would be 64 times; 8 is linear. A floor, since small ones are below the clock's grain.
    assert large < 30 * max(small, 0.004)


_BITS = re.findall(
    r"\S+",
    """<p> </p> <a href="x"> </a> <ul> <ol> <li> </ul> <pre> </pre> <td> <tr> <br> <!-- --> < > " ' = & &amp;
    &#9; <img alt=" <script> </script> <head> <blockquote> / word""",
)
_pieces = st.lists(st.sampled_from([*_BITS, " ", "\n"]) | st.text(max_size=5), max_size=40)


@settings(max_examples=60)
@given(_pieces)
def test_nothing_makes_it_raise(pieces) -> None:
    assert isinstance(text_from_html("".join(pieces)), str)


def step_by_step(html: str) -> str:
    page = Page()
    Scan(html, page).rest()
    return page.text()


@settings(max_examples=150)
@given(_pieces, st.integers(1, 12))
def test_the_fast_way_gives_what_the_slow_way_gives(pieces, times) -> None:
    html = "".join(pieces) * times
    assert text_from_html(html) == step_by_step(html)


@pytest.mark.parametrize(
    "piece",
    [
        "<p class='x'>some words &amp; more <b>bold</b></p>\n",
        "words that no tag interrupts &nbsp; ",
        "<style>p > a { }</style><p>x</p>",
        "<!-- a > b --><td>x</td> < y ",
        "<p title='unpaired>x</p>",
    ],
)
def test_the_fast_way_gives_the_same_beyond_one_window(piece) -> None:
    html = piece * 1_000
    assert text_from_html(html) == step_by_step(html)
