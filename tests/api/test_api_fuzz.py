"""Requests that nobody thought of, made from the OpenAPI document: each gets an answer that the document knows.

With a key and without one, valid and invalid, over a real socket. A server error, a status that the operation does
not list, a body that does not fit its schema: all of them fail, and schemathesis prints the request as `curl`. What
was tried depends on the seed of pytest-randomly, which heads the run; `-p randomly -p no:xdist --randomly-seed N`
tries the same again.
"""

import random
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import new_key
from tests.api.test_api_server import serving
from tests.sql import kit

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
WITH_KEY, WITHOUT_KEY = 28, 4
"""Requests for each operation; together more than a thousand."""


@pytest.fixture
def served(db):
    with serving(db.dsn_for("api")) as url:
        yield url


class Fuzz:
    """Asks one operation after another, and counts."""

    def __init__(self, seed_of_run, mode):
        self.seed, self.mode, self.said = seed_of_run, mode, Counter()

    def ask(self, operation, headers, most):
        @seed(self.seed)
        @settings(max_examples=most, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=self.mode))
        def ask(case):
            case.headers.pop("Authorization", None)  # what is made up would stand in the key's place
            answer = case.call(headers=headers)
            self.said[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)
            if not headers and not case.path.startswith("/health"):
                assert answer.status_code == 401, answer.text

        ask()


def takes_anything(operation):
    """Whether there is something about a request that could be wrong."""
    return bool(operation.body) or any((operation.path_parameters, operation.query, operation.headers))


@pytest.mark.one_server
@pytest.mark.timeout(300)
# schemathesis asks `random` here and there, which pytest-randomly seeds.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_every_answer_is_one_that_the_document_knows(db, served, mode, record_property):
    document = schemathesis.openapi.from_url(f"{served}/schema/openapi.json")
    fuzz = Fuzz(random.getrandbits(32), mode)  # of the run's own seed
    print(f"seed {fuzz.seed}")  # noqa: T201 - shown with a failure
    key = {"Authorization": f"Bearer {new_key(db, 'fuzz')}"}
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.path == "/events/stream":
            continue  # an endless answer
        if mode is schemathesis.GenerationMode.NEGATIVE and not takes_anything(operation):
            continue
        fuzz.ask(operation, key, WITH_KEY // 3)
        fuzz.ask(operation, {}, WITHOUT_KEY // 3)
    record_property("answers", dict(fuzz.said))
    print(f"{fuzz.said.total()} requests: {dict(fuzz.said)}")  # noqa: T201
    assert fuzz.said[401]
    assert fuzz.said[200] or mode is schemathesis.GenerationMode.NEGATIVE
    with db.connect() as connection:
        assert set(kit.differences(connection)) <= {0}
