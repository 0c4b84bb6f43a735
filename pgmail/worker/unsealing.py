"""Opens what a worker claimed sealed. What cannot be opened says why, and its mail waits or ends, one by one.

What can go wrong: a key is not in this worker (`KeyMissing`), or what lies in the database is not what was sealed
(`SealBroken`). Neither keeps other mail of the same batch from being opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec

from pgmail.errors import KeyMissing, SealBroken
from pgmail.sealing.mail import open_content, open_variables
from pgmail.seals import Opener
from pgmail.store.work import Barred, Lease, MessageRow, RecipientRow

# What could not be opened goes on as this, so that what goes on with it can be read.
_CLOSED = b'{"from": {"address": "sealed@invalid"}}'


async def keys_of(opener: Opener | None, tenant: int, ids: set[int]) -> dict[int, bytes | KeyMissing]:
    """Return the data keys of a tenant by number; for one that cannot be had, why. Raises DatabaseAway."""
    if opener is None:
        why = KeyMissing("it is sealed, and this worker has no PGMAIL_SEAL_KEYS")
        return dict.fromkeys(ids, why)
    return await opener.keys(tenant, ids)


def key_of(keys: Mapping[int, bytes | KeyMissing], id: int) -> bytes:
    """Return one of `keys_of`. Raises KeyMissing."""
    key = keys[id]
    if isinstance(key, KeyMissing):
        raise KeyMissing(str(key))
    return key


async def open_rows(
    opener: Opener | None,
    tenant: int,
    leases: Sequence[Lease],
    rows: Sequence[MessageRow],
    people: Sequence[RecipientRow],
) -> tuple[list[MessageRow], list[RecipientRow], dict[UUID, Barred]]:
    """Open what is sealed of messages and their recipients.

    What cannot be opened stays closed, and the third answer says why, by its id. Raises DatabaseAway.
    """
    barred: dict[UUID, Barred] = {}
    message_of = {lease.id: lease.message_id for lease in leases}
    wanted = {row.key_id for row in rows} | {person.key_id for person in people}
    keys = await keys_of(opener, tenant, {number for number in wanted if number is not None})

    def opened_message(row: MessageRow) -> MessageRow:
        if row.key_id is None:
            return row
        content = open_content(row.content, key_of(keys, row.key_id), tenant, row.id)
        return msgspec.structs.replace(row, content=msgspec.json.encode(content))

    def opened_person(row: RecipientRow) -> RecipientRow:
        if row.key_id is None or row.variables is None:
            return row
        key = key_of(keys, row.key_id)
        variables = open_variables(row.variables, key, tenant, message_of[row.id], row.address)
        return msgspec.structs.replace(row, variables=variables, key_id=None)

    opened_rows, opened_people = [], []
    for row in rows:
        try:
            opened_rows.append(opened_message(row))
        except (KeyMissing, SealBroken) as why:
            barred[row.id] = Barred(str(why), broken=isinstance(why, SealBroken))
            opened_rows.append(msgspec.structs.replace(row, content=_CLOSED))
    for person in people:
        try:
            opened_people.append(opened_person(person))
        except (KeyMissing, SealBroken) as why:
            barred[person.id] = Barred(str(why), broken=isinstance(why, SealBroken))
            opened_people.append(msgspec.structs.replace(person, variables=None))
    return opened_rows, opened_people, barred
