"""An HTTP/3 client on aioquic: http3_client.py PORT CA. Prints a line for each thing it tried."""

import asyncio
import contextlib
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamReset


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.answers = {}

    def quic_event_received(self, event):
        if isinstance(event, (StreamReset, StopSendingReceived)) and event.stream_id in self.answers:
            self.end(event.stream_id, f"reset {event.error_code}")
        if isinstance(event, ConnectionTerminated):
            for stream in list(self.answers):
                self.end(stream, f"closed {event.error_code}")
        for got in self.http.handle_event(event):
            answer = self.answers.get(getattr(got, "stream_id", None))
            if answer is None:
                continue
            if isinstance(got, HeadersReceived):
                answer["fields"].append(dict(got.headers))
            elif isinstance(got, DataReceived):
                answer["body"] += got.data
            if got.stream_ended:
                self.end(got.stream_id, None)

    def end(self, stream, error):
        done = self.answers[stream]["done"]
        if not done.done():
            done.set_result(error)

    async def ask(self, method, body=b"", more=()):
        stream = self._quic.get_next_available_stream_id()
        done = asyncio.get_running_loop().create_future()
        self.answers[stream] = {"fields": [], "body": b"", "done": done}
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", b"edge.example"), (b":path", b"/a?b")]
        self.http.send_headers(stream, [*head, *more], end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        error = await asyncio.wait_for(done, 30)
        answer = self.answers.pop(stream)
        if error:
            return error, b""
        return answer["fields"][-1][b":status"].decode(), answer["body"]


async def main(port, ca):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name="edge.example")
    configuration.load_verify_locations(ca)

    def opened():
        return connect("127.0.0.1", port, configuration=configuration, create_protocol=Client)

    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened())
        status, _ = await first.ask(b"GET")
        say(f"a get: {status}")
        fields = [(b"x-again", b"a value that a dynamic table would like"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
        bodies = [str(index).encode() * 5000 for index in range(50)]
        answers = await asyncio.gather(*(first.ask(b"POST", body, fields) for body in bodies))
        whole = sum(answer == ("200", body) for answer, body in zip(answers, bodies))
        say(f"fifty posts: {whole} whole")
        first.request_key_update()
        status, _ = await first.ask(b"GET")
        say(f"after a key update: {status}")
        status, _ = await first.ask(b"GET", more=[(b"connection", b"close")])
        say(f"a malformed request: {status}")
        others = [await stack.enter_async_context(opened()) for _ in range(3)]
        retried = [other._quic._retry_source_connection_id is not None for other in [first, others[-1]]]
        say(f"retries: {int(retried[0])} of the first, {int(retried[1])} of the last")
        status, _ = await others[-1].ask(b"GET")
        say(f"the last: {status}")


def say(line):
    print(line, flush=True)


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
