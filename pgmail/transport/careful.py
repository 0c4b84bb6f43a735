"""The body of a mail that is written with care, by the mail's own task: a big one, or one with an `on_dot`.

It goes in blocks, as fast as the remote reads. `on_dot` is awaited when all is written but what makes the mail
deliverable (the end of data, or the last chunk: RFC 3030) and no chunk was refused; if it raises, the error
escapes and the caller gives the connection up. A reply that comes before the end, or a break, ends the mail in
the session; this notices at its next step and writes no more.
"""

from __future__ import annotations

from pgmail.transport.commands import stuffed
from pgmail.transport.session import Session
from pgmail.transport.transaction import BLOCK_BYTES, Transaction


async def carry(session: Session, mail: Transaction) -> None:
    """Write the body of the first mail in a session's line, whose `ready` came true, and its end of data."""
    chunking, pipelining = session.extensions.chunking, session.extensions.pipelining
    whole, end = (mail.envelope.body, b"") if chunking else stuffed(mail.envelope.body)
    body = memoryview(whole)
    start, size = 0, len(whole)
    over = mail.done.done
    while not over() and ((size - start > BLOCK_BYTES) if chunking else (start < size)):
        block = body[start : start + BLOCK_BYTES]
        start += BLOCK_BYTES
        if chunking:
            mail.owed += 1
            session.write(b"BDAT %d\r\n" % len(block))
        session.write(block)
        while not over() and (session.congested or (mail.owed and not pipelining)):
            await session.change()
    while not over() and mail.owed:
        await session.change()
    if mail.on_dot is not None and not over():
        await mail.on_dot()
    if over():
        return
    if chunking:
        last = bytes(body[start:])
        end = b"BDAT %d LAST\r\n%b" % (len(last), last)
    session.end(mail, end)
