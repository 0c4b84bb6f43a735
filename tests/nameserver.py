"""A name server on the loopback: answers about TXT records as a test tells it to, and remembers what it was asked.

async with NameServer() as dns:
    dns.publish("_pgmail.example.com", "pgmail-verify=...")
    dns.fails["_pgmail.example.net"] = "servfail"     # or "silent", "truncated", "garbage", "refused"
    await txt.look("example.com", [dns.address])
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

LONGEST = 255  # octets of one string of a TXT record (RFC 1035, section 3.3)


class NameServer(asyncio.DatagramProtocol):
    """One server on a UDP port of its own."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.fails: dict[str, str] = {}
        self.asked: list[str] = []
        self.port = 0
        self._transport: Any = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def setting(self) -> str:
        """As PGMAIL_DNS_SERVERS has it."""
        return f"127.0.0.1:{self.port}"

    def publish(self, name: str, *texts: str) -> None:
        """Add TXT records; none makes a name that is there without one."""
        self.records.setdefault(name.lower(), []).extend(texts)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        failure = self.fails.get(name)
        if failure == "silent":
            return
        if failure == "garbage":
            self._transport.sendto(data[:2] + b"\x81\x80" + b"\xff" * 30, addr)
            return
        self._transport.sendto(self._answer(query, name, failure).to_wire(), addr)

    def _answer(self, query: Any, name: str, failure: str | None) -> Any:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if failure is not None:
            answer.set_rcode(dns.rcode.SERVFAIL if failure == "servfail" else dns.rcode.REFUSED)
        elif name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif self.records[name]:
            texts = [_strings(text) for text in self.records[name]]
            answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "TXT", *texts))
        return answer


def _strings(text: str) -> str:
    """As a zone file has it: strings in quotes, none longer than it may be."""
    raw = text.encode()
    pieces: Sequence[bytes] = [raw[at : at + LONGEST] for at in range(0, len(raw), LONGEST)] or [b""]
    return " ".join('"' + "".join(f"\\{octet:03d}" for octet in piece) + '"' for piece in pieces)
