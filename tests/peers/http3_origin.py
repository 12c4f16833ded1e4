"""An HTTP/3 origin on aioquic that echoes: http3_origin.py FOLDER, with origin.pem and origin.key in it. Prints its port."""

import asyncio
import sys

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Origin(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.bodies = {}
        self.tunnels = set()

    def quic_event_received(self, event):
        for got in self.http.handle_event(event):
            if isinstance(got, HeadersReceived) and (b":protocol", b"websocket") in got.headers:
                self.tunnel(got.stream_id, dict(got.headers))
            elif isinstance(got, HeadersReceived):
                self.bodies.setdefault(got.stream_id, b"")
            elif isinstance(got, DataReceived) and got.stream_id in self.tunnels:
                self.http.send_data(got.stream_id, got.data, end_stream=got.stream_ended)
                self.transmit()
            elif isinstance(got, DataReceived):
                self.bodies[got.stream_id] += got.data
            if getattr(got, "stream_ended", False) and got.stream_id in self.bodies:
                self.answer(got.stream_id, self.bodies.pop(got.stream_id))

    def tunnel(self, stream, head):
        """Extended CONNECT (RFC 9220): what comes is sent back, unless the path says otherwise."""
        wrong = [name for name in (b"sec-websocket-key", b"connection", b"upgrade") if name in head]
        if head[b":method"] != b"CONNECT" or b":scheme" not in head or wrong or head[b":path"] == b"/refuse":
            self.http.send_headers(stream, [(b":status", b"403")], end_stream=False)
            self.http.send_data(stream, b"no", end_stream=True)
        else:
            self.tunnels.add(stream)
            protocol = head.get(b"sec-websocket-protocol", b"none")
            self.http.send_headers(stream, [(b":status", b"200"), (b"sec-websocket-protocol", protocol)])
        self.transmit()

    def answer(self, stream, body):
        self.http.send_headers(stream, [(b":status", b"103"), (b"link", b"</a.css>; rel=preload")])
        self.http.send_headers(stream, [(b":status", b"200"), (b"server", b"aioquic"), (b"x-made", b"again and again")])
        self.http.send_data(stream, body, end_stream=False)
        self.http.send_headers(stream, [(b"x-sum", str(len(body)).encode())], end_stream=True)
        self.transmit()


async def main(folder):
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(f"{folder}/origin.pem", f"{folder}/origin.key")
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, create_protocol=Origin), local_addr=("127.0.0.1", 0)
    )
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Future()


asyncio.run(main(sys.argv[1]))
