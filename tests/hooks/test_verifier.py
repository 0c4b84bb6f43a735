"""The verifier that the manual gives away believes what we send, with two secrets too, and nothing else."""

import re
from pathlib import Path

from tests.sql.kit import send

MANUAL = Path(__file__).parents[2] / "ops/docs/webhooks.md"


async def test_the_verifier_of_the_manual_believes_both_secrets_of_a_rotation(hooks, db, receiver, app):
    code = re.search(r"```python\n(.*?)```", MANUAL.read_text("utf-8"), re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    verified = names["verified"]
    hook = await hooks.add(receiver.url, ["email.queued"])
    new, _ = await hooks.endpoints.rotate(await db.aconnect("admin"), hook.id, 3_600, reason="yearly")
    send(app)
    await hooks.fan_out()
    await hooks.deliver()
    (got,) = receiver.got
    assert verified(hook.secret, got.headers, got.body)
    assert verified(new, got.headers, got.body)
    assert not verified("whsec_" + "A" * 44, got.headers, got.body)
    assert not verified(new, got.headers, got.body + b" ")
    assert not verified(new, got.headers | {"webhook-id": "another"}, got.body)
    old = str(int(got.headers["webhook-timestamp"]) - 600)
    assert not verified(new, got.headers | {"webhook-timestamp": old}, got.body)
