"""The plain reader and the law agree: of any email the one declines, or both make the same record of it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests import corpus
from tests.sql import kit
from tests.sql.test_corpus import provide

_BOTH = """
    select to_jsonb(plain) - 'content', convert_from((plain).content, 'UTF8')::jsonb,
           to_jsonb(law) - 'content', convert_from((law).content, 'UTF8')::jsonb
    from (select pgmail.read_plain(1, b) as plain, pgmail.read_email(1, b) as law
          from (select %s::jsonb as b) b offset 0) r
"""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_LARGE = 1_000_000  # octets of JSON: such bodies take long, and a few of them do


def declined(connection: kit.Connection, email: Any) -> bool:
    """Whether the plain reader leaves it to the law; where it does not, that both read the same."""
    plain, content, law, law_content = connection.execute(_BOTH, [Jsonb(email)]).fetchone() or ()
    if plain is None or plain["sender"] is None:
        return True
    assert (plain, content) == (law, law_content), email
    return False


@pytest.fixture
def reading(owner):
    """A tenant with templates, a stream with a limit, and one with another priority."""
    for name, needs in (("bare", []), ("greeting", ["name"]), ("order", ["name", "total"])):
        owner.execute("select pgmail.save_template(%s, 's', 'b', null, %s, '{}', true)", [name, needs])
    owner.execute("select pgmail.save_template('draft', 's', 'b', null, '{}', '{}', false)")
    kit.stream(owner, "limited", max_queued=3, priority=3)
    return owner


def test_every_case_of_the_corpus_is_read_the_same_or_left_to_the_law(owner, pg_major):
    plain = 0
    for case in corpus.cases(datetime.now(UTC), "sql"):
        if pg_major != 18 and len(str(case.body)) > _LARGE:
            continue
        with owner.transaction(force_rollback=True):
            provide(owner, case.needs)
            left = declined(owner, case.body)
            plain += not left
            if not left:
                assert case.expect is None or case.expect.code in corpus.STATE_CODES
    assert plain >= 20


def mailbox(name: str, address: str) -> st.SearchStrategy[str]:
    return st.sampled_from(
        [address, f"{name} <{address}>", f'"{name}" <{address}>', f"<{address}>", f" {address}"]
    )


# What mail looks like, and what comes close to it: the seams are where two readers would differ.
_WORDS = st.one_of(
    st.sampled_from(["Ada", "Ada Lovelace", "Shop, Inc.", "", " ", "  a  ", "a<b", "a>b", 'a"b', "a\\b", "Zoë", "x@y"]),
    st.text(max_size=8).filter(lambda text: "\x00" not in text),
)  # fmt: skip
_LOCAL = st.sampled_from(
    ["ada", "Ada", "a.b", ".a", "a.", "a..b", "o'hara", "a+b", "x{y}|z", "zoë", '"a b"', "", "a@b", "l" * 64, "l" * 65]
)  # fmt: skip
_DOMAIN = st.sampled_from(
    [
        *("example.org", "Example.ORG", "a-b.example.org", "a--b.example.org", "-a.org", "a-.org", "a.org-"),
        *("localhost", "1.2.3.4", "a.1b", "a.b1", "a.b-1", "bücher.example", "a..b", "a.b.", "_a.org"),
        *("xn--bcher-kva.example", "d" * 63 + ".org", "d" * 64 + ".org", "[127.0.0.1]", "a" + ".b" * 40),
    ]
)
_ADDRESS = st.builds("{}@{}".format, _LOCAL, _DOMAIN)
_MAILBOX = st.one_of(
    st.just("ada@example.org"), st.builds(mailbox, _WORDS, _ADDRESS).flatmap(lambda s: s), _WORDS
)
_SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), _WORDS)
_JSON = st.recursive(
    _SCALAR,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_WORDS, inner, max_size=2),
    max_leaves=4,
)
_VARIABLES = st.one_of(
    st.fixed_dictionaries({}, optional={"name": _SCALAR, "total": _SCALAR, "nested": _JSON}),
    st.just({"name": "Ada", "total": None}),
)
_PERSON = st.one_of(
    _MAILBOX,
    st.fixed_dictionaries(
        {"address": st.one_of(st.just("bob@example.org"), _MAILBOX)},
        optional={
            "name": st.one_of(_WORDS, _SCALAR),
            "variables": st.one_of(_VARIABLES, _JSON),
            "more": _SCALAR,
        },
    ),
    _JSON,
)
_TEMPLATE = st.one_of(
    st.sampled_from(["bare", "greeting", "order", "draft", "none"]),
    st.fixed_dictionaries(
        {"id": st.sampled_from(["bare", "greeting", "order", 7])},
        optional={"variables": st.one_of(_VARIABLES, _JSON), "version": st.sampled_from([1, 2, "1", None])},
    ),
    _JSON,
)
_TEXT = st.one_of(
    _WORDS,
    st.sampled_from(["line\nline", "\u2028", '"quoted" \\ {{ name }}', "x" * 998, "x" * 999, "é" * 998]),
)
_EMAILS = st.fixed_dictionaries(
    {
        "from": st.one_of(st.just("Shop <shop@example.com>"), _MAILBOX, _JSON),
        "to": st.one_of(st.just("ada@example.org"), _PERSON, st.lists(_PERSON, max_size=4)),
    },
    optional={
        "subject": st.one_of(_TEXT, _SCALAR),
        "text": st.one_of(_TEXT, _SCALAR),
        "html": st.one_of(_TEXT, _SCALAR),
        "mode": st.sampled_from(["envelope", "personal", "personal", "loud", None, 7]),
        "template": _TEMPLATE,
        "variables": st.one_of(_VARIABLES, _JSON),
        "stream": st.sampled_from(["transactional", "broadcast", "limited", "none", None, 7, ["broadcast"]]),
        "priority": st.sampled_from(["high", "normal", "low", "urgent", None, 1]),
        "on_limit": st.sampled_from(["delay", "hold", "error", "panic", None, True]),
        "test": st.sampled_from([True, False, None, "true", 1, {}]),
        "traceparent": st.sampled_from([TRACE, TRACE.upper(), "00-0", None, 1, {}]),
        "metadata": st.one_of(st.just({"order": 7, "nothing": None}), _JSON),
        "idempotency_key": st.sampled_from(
            ["k", "a key", " k", "k ", "", "ü", None, 7, "k" * 256, "k" * 257]
        ),
        **dict.fromkeys(("cc", "bcc", "reply_to"), st.one_of(st.none(), st.just([]), _MAILBOX)),
        **dict.fromkeys(
            ("headers", "attachments", "tags", "unknown"), st.one_of(st.none(), st.just({}), _JSON)
        ),
        "scheduled_at": st.sampled_from([None, "2030-01-01", 7]),
    },
)
_PEOPLE = [{"address": f"U{n}@example.org", "name": "Ü", "variables": {"name": n}} for n in range(1000)]
_QUICK = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.one_server
@_QUICK
@given(email=_EMAILS)
def test_any_email_is_read_the_same_or_left_to_the_law(reading, email):
    declined(reading, email)


# A good email with one or two keys changed: where everything is odd at once, the first oddity hides the others.
@pytest.mark.one_server
@settings(_QUICK, max_examples=400)
@given(base=st.sampled_from(range(4)), odd=_EMAILS, keys=st.sets(st.integers(0, 30), min_size=1, max_size=2))
@example(base=0, odd={"unknown": None}, keys={0})
def test_an_email_with_one_or_two_oddities_is_read_the_same_or_left_to_the_law(reading, base, odd, keys):
    good = [
        kit.body(),
        kit.body(stream="broadcast", idempotency_key="k"),
        kit.body(template="greeting", variables={"name": "x"}, subject=None, text=None),
        kit.body(_PEOPLE[:2], mode="personal"),
    ][base]
    names = sorted(odd)
    declined(reading, good | {names[n % len(names)]: odd[names[n % len(names)]] for n in keys})


# Of the usual keys alone, so that most are plain.
@pytest.mark.one_server
@_QUICK
@given(
    email=st.fixed_dictionaries(
        {
            "from": st.one_of(st.just("shop@example.com"), _MAILBOX),
            "to": st.lists(_PERSON, min_size=1, max_size=3) | _MAILBOX,
        },
        optional={
            "mode": st.just("personal"),
            "variables": _VARIABLES,
            "stream": st.just("broadcast"),
            "idempotency_key": st.just("k"),
            "test": st.booleans(),
        },
    ),
    texts=st.one_of(
        st.fixed_dictionaries({"subject": _TEXT, "text": _TEXT}, optional={"html": _TEXT}),
        st.fixed_dictionaries(
            {"template": st.sampled_from(["bare", "greeting", "order"])}, optional={"subject": _TEXT}
        ),
    ),
)
def test_usual_email_is_read_the_same_or_left_to_the_law(reading, email, texts):
    declined(reading, email | texts)


@pytest.mark.parametrize(
    "email",
    [
        kit.body(),
        kit.body("Ada Lovelace <Ada@Example.org>", **{"from": '"Shop, Inc." <shop@example.com>'}),
        kit.body(
            [
                "a@example.org",
                "Bob <b@example.org>",
                {"address": "c@example.org", "name": "C"},
                "A@example.org",
            ]
        ),
        kit.body({"address": "c@example.org"}, html="<p>ü</p>", text=None),
        kit.body(text=None, html="<p>") | {"text": None, "cc": None, "scheduled_at": None},
        kit.body(
            variables={"a": None}, stream="broadcast", priority="high", on_limit="error", metadata={"a": None}
        ),
        kit.body(idempotency_key="a key") | {"html": None},
        kit.body(template={"id": "greeting", "variables": {"name": "x"}}, subject=None, text=None),
        kit.body(template="greeting", variables={"name": "x"}, text=None),
        kit.body(_PEOPLE, mode="personal", template="greeting", subject=None, text=None),
        kit.body(_PEOPLE[:2], mode="personal"),
        kit.body(mode="personal"),
    ],
    ids=lambda email: "-".join(sorted(email))[:60],
)
def test_what_most_mail_looks_like_is_plain(reading, email):
    assert not declined(reading, email)


_STORED = """
    select stream, priority, mode, sender, recipients, scheduled_at, expires_at, template, template_version, size_bytes,
        tags, metadata, idempotency_key, created_by, traceparent, convert_from(content, 'UTF8')::jsonb - 'headers'
      from pgmail.message;
    select r.position, role, address, rcpt, name, site, convert_from(variables, 'UTF8')::jsonb, q.lane, q.later, q.wait,
        q.hold_reason, q.due_at = m.created_at, q.expires_at
      from pgmail.recipient r join pgmail.message m on m.id = r.message_id
      left join pgmail.queue q on q.id = r.id order by r.position;
    select lane, stream, priority, site from pgmail.lane_touch order by lane;
    select stream, kind, n from pgmail.tally order by kind;
    select state, site, reason from pgmail.outcome order by site;
    select type, site, detail from pgmail.event order by type;
    select key, body_hash is null, cardinality(ids) from pgmail.idempotency
"""


def stored(owner: kit.Connection) -> list[Any]:
    """All that a send wrote, without ids and moments."""
    return [kit.rows(owner, query) for query in _STORED.split(";")]


@pytest.mark.one_server
@pytest.mark.parametrize(
    "email",
    [
        kit.body("Ada@googlemail.com"),
        kit.body("gone@example.org"),
        kit.body(["a@example.org", "gone@example.org", "B <b@Example.net>"]),
        kit.body(_PEOPLE[:3], mode="personal"),
        kit.body(idempotency_key="k", metadata={"a": 1}, stream="broadcast", priority="high"),
        kit.body(template="greeting", variables={"name": "x"}, subject=None, text=None),
        kit.body(stream="limited", on_limit="hold"),
        kit.body(traceparent=TRACE),
    ],
    ids=["one", "suppressed", "several", "personal", "with options", "template", "limited", "traced"],
)
def test_all_three_ways_to_store_an_email_write_the_same(reading, email):
    owner = reading
    owner.execute("select pgmail.suppress('gone@example.org')")
    owner.execute("delete from pgmail.event")

    def after(statement, value):
        with owner.transaction(force_rollback=True):
            owner.execute(statement, [Jsonb(value)])
            return stored(owner)

    alone = after("select pgmail.send(%s)", email)
    assert after("select * from pgmail.send_many(%s)", [email]) == alone
    # A header makes it the law's to read.
    odd = email | {"headers": {"X-Odd": "1"}}
    assert declined(owner, odd)
    assert after("select pgmail.send(%s)", odd) == alone


@pytest.mark.one_server
def test_a_thousand_personal_recipients_are_stored_in_their_order(reading):
    kit.send(reading, _PEOPLE, mode="personal", template="greeting", subject=None, text=None)
    found = kit.rows(
        reading, "select rcpt, convert_from(variables, 'UTF8')::jsonb from pgmail.recipient order by position"
    )
    assert found == [(person["address"], person["variables"]) for person in _PEOPLE]
