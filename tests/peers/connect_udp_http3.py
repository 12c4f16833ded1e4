"""UDP over HTTP/3 (RFC 9298) on aioquic: connect_udp_http3.py PORT CA. Prints a line for each thing it tried."""

import asyncio
import contextlib
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection, Setting
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset

LONGEST = 30


class WithDatagrams(H3Connection):
    def _get_local_settings(self):
        return {**super()._get_local_settings(), Setting.H3_DATAGRAM: 1}


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = WithDatagrams(self._quic)
        self.queues = {}
        self.closed = asyncio.get_running_loop().create_future()

    def queue(self, kind, stream):
        return self.queues.setdefault((kind, stream), asyncio.Queue())

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated) and not self.closed.done():
            self.closed.set_result(event.error_code)
        if isinstance(event, StreamReset):
            self.queue("head", event.stream_id).put_nowait(f"reset {event.error_code}")
        for got in self.http.handle_event(event):
            if isinstance(got, HeadersReceived):
                self.queue("head", got.stream_id).put_nowait(dict(got.headers))
            elif isinstance(got, DatagramReceived):
                self.queue("datagram", got.stream_id).put_nowait(got.data)
            elif isinstance(got, DataReceived) and got.stream_ended:
                self.queue("head", got.stream_id).put_nowait("ended")

    async def settings(self):
        while self.http.received_settings is None:
            await asyncio.sleep(0.01)
        return self.http.received_settings

    def begin(self, path=b"/.well-known/masque/udp/dns.example/53/", early=(), protocol=b"connect-udp"):
        stream = self._quic.get_next_available_stream_id()
        for payload in early:
            self.http.send_datagram(stream, payload)
        if early:
            # In a packet of their own, before the request.
            self.transmit()
        fields = [(b":scheme", b"https"), (b":authority", b"edge.example"), (b":path", path)]
        if protocol:
            fields = [(b":method", b"CONNECT"), (b":protocol", protocol), *fields, (b"capsule-protocol", b"?1")]
        else:
            fields = [(b":method", b"GET"), *fields]
        self.http.send_headers(stream, fields, end_stream=not protocol)
        self.transmit()
        return stream

    async def head(self, stream):
        return await asyncio.wait_for(self.queue("head", stream).get(), LONGEST)

    async def open(self, **how):
        stream = self.begin(**how)
        return stream, await self.head(stream)

    def send(self, stream, payload, context=b"\0"):
        self.http.send_datagram(stream, context + payload)
        self.transmit()

    async def payload(self, stream, patience=LONGEST):
        data = await asyncio.wait_for(self.queue("datagram", stream).get(), patience)
        assert data[0] == 0
        return data[1:]


async def thousand(client, stream):
    """In batches; what comes back was sent, once, and little is lost on a loopback."""
    sent, came = set(), []
    for batch in range(50):
        payloads = [b"%d-%d-" % (batch, index) * (index + 1) * 3 for index in range(20)]
        sent.update(payloads)
        for payload in payloads:
            client.send(stream, payload)
        with contextlib.suppress(asyncio.TimeoutError):
            for _ in payloads:
                came.append(await client.payload(stream, 2))
    return len(sent) == 1000 and len(came) == len(set(came)) >= 950 and sent.issuperset(came)


async def main(port, ca):
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, server_name="edge.example", max_datagram_frame_size=65536
    )
    configuration.load_verify_locations(ca)
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Client) as client:
        say(f"settings: {(await client.settings()).get(Setting.H3_DATAGRAM)}")
        stream, head = await client.open()
        say(f"opened: {head[b':status'].decode()} {head[b'capsule-protocol'].decode()}")
        client.send(stream, b"hello")
        say(f"a datagram: {await client.payload(stream)}")
        say(f"a thousand: {await thousand(client, stream)}")
        client.http.send_data(stream, b"\0\x0d\0in a capsule", end_stream=False)
        client.transmit()
        say(f"a capsule: {await client.payload(stream)}")
        client.send(stream, b"lost", context=b"\2")
        client.send(stream, b"after it")
        say(f"an unknown context: {await client.payload(stream)}")
        # More than a packet takes: lost, not put in a capsule (RFC 9298, section 6.1).
        client.send(stream, b"big 9000")
        client.send(stream, b"after it")
        say(f"what fits no packet: {await client.payload(stream)}")
        early, _ = await client.open(early=[b"\0early"])
        say(f"before its request: {await client.payload(early)}")
        client.http.send_data(early, b"", end_stream=True)
        client.transmit()
        while await client.head(early) != "ended":
            pass
        client.send(early, b"too late")
        _, head = await client.open()
        say(f"after the end: {head[b':status'].decode()}")
        _, head = await client.open(path=b"/", early=[b"\0x"], protocol=None)
        say(f"with a get: {head}")
        cut, _ = await client.open()
        client.http.send_data(cut, b"\0\x05\0", end_stream=True)
        client.transmit()
        say(f"cut off within a capsule: {await client.head(cut)}")
        client._quic.send_datagram_frame(b"\xd0" + bytes(7))
        client.transmit()
        say(f"a stream that cannot be: closed {await asyncio.wait_for(client.closed, LONGEST)}")


def say(line):
    print(line, flush=True)


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
