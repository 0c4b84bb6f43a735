"""The head of an answer goes with its first octets, and is never forgotten."""

import asyncio

from pgmail.api.heads import Joined

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Socket:
    """A transport that notes what it is told."""

    def __init__(self):
        self.told = []

    def write(self, data):
        self.told.append(data)

    def close(self):
        self.told.append("closed")

    def is_closing(self):
        return "closed" in self.told

    def pause_reading(self):
        self.told.append("paused")


async def test_a_head_and_its_body_are_one_write():
    made = Joined(socket := Socket())
    for body in (b"ok", b""):
        made.write(HEAD)
        assert socket.told == []
        made.write(body)
        assert socket.told == [HEAD + body]
        socket.told.clear()
    await asyncio.sleep(0)
    assert socket.told == []


async def test_a_head_that_nothing_follows_goes_in_the_same_turn_of_the_loop():
    made = Joined(socket := Socket())
    made.write(HEAD)
    await asyncio.sleep(0)
    assert socket.told == [HEAD]
    made.write(b"data: 1\n\n")
    assert socket.told == [HEAD, b"data: 1\n\n"]


async def test_a_head_goes_before_the_connection_is_closed():
    made = Joined(socket := Socket())
    made.write(HEAD)
    made.close()
    await asyncio.sleep(0)
    assert socket.told == [HEAD, "closed"]
    assert made.is_closing()


async def test_what_is_no_head_is_written_at_once_and_all_else_is_the_transports():
    made = Joined(socket := Socket())
    made.write(b"\x81\x02ok")
    made.pause_reading()
    assert socket.told == [b"\x81\x02ok", "paused"]
    assert not made.is_closing()
