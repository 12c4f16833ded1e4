#!/usr/bin/env python3
"""An HTTP/2 origin on hyper-h2 that answers, refuses and breaks off as it is told, and odd in ways that are legal.

  http2_origin.py ODDITY...

HTTP/2 by prior knowledge. Prints its port, then a line of JSON for every request that it did something with: connection,
stream, method, path, content received so far, whether that was all. A request names in its path what happens to the first
one with that path; to those after it, and to any other path, the answer is the content, turned around, and a sum as trailer:

  /reset/CODE/...           RST_STREAM with this code, once the request is whole
  /early/CODE/...           a whole response while the request comes, then RST_STREAM with this code
  /goaway/below/CODE/...    GOAWAY with this code, that names the stream before: this one was not processed
  /goaway/above/CODE/...    GOAWAY that names this one, which is answered then
  /goaway/two/CODE/...      the same in two steps, of which the first names any stream there could be
  /goaway/lost/CODE/...     GOAWAY that names this one, and the connection is closed without an answer
  /close/before/...         the connection is closed before a response
  /close/within/...         the connection is closed within a response
  /hold/...                 not answered before a `/release` comes on any connection

What is odd (RFC 9113): `windows` grants seven bytes at a time (6.9), `one` allows one stream (6.5.2), `changing` changes both
limits and windows in flight, below zero too (6.9.2), `table` wants no dynamic table (6.5.2), `pieces` pads and has fields in
CONTINUATION frames of any size (6.1, 6.2, 6.10), `chatter` sends pings, empty DATA and what must be ignored (5.5, 6.7).
"""

import asyncio
import json
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated, DataReceived, RemoteSettingsChanged, RequestReceived, StreamEnded, StreamReset, WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from h2.windows import WindowManager
from hyperframe.frame import (
    ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PriorityFrame, SettingsFrame,
)

ODD = set(sys.argv[1:])
LAST, REFUSED_STREAM = 2**31 - 1, 7


def shredded(data):
    """The same frames, with padding, and field sections in pieces."""
    out = b""
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        whole, data = data[:9 + length], data[9 + length:]
        frame.parse_body(memoryview(whole[9:]))
        if not isinstance(frame, (HeadersFrame, DataFrame)):
            out += whole
            continue
        pieces = [frame.data]
        if isinstance(frame, HeadersFrame):
            block, flags = frame.data, {"PADDED"} | ({"END_STREAM"} if "END_STREAM" in frame.flags else set())
            # One octet, nothing, the rest: a field may begin anywhere.
            pieces = [block[:1], b"", block[1:2], block[2:]]
        else:
            flags = set(frame.flags) | {"PADDED"}
        kind = type(frame)
        first = kind(frame.stream_id, data=pieces[0], pad_length=200, flags=flags)
        out += first.serialize()
        for number, piece in enumerate(pieces[1:], 2):
            last = {"END_HEADERS"} if number == len(pieces) else set()
            out += ContinuationFrame(frame.stream_id, data=piece, flags=last).serialize()
    return out


class Lenient(Settings):
    """Our settings. A stream too many costs itself, as with most servers, where hyper-h2 would end the connection (section
    5.1.2); and the first acknowledgement is that of the preface, where hyper-h2 takes it for what was changed since."""

    max_concurrent_streams = property(lambda self: LAST)
    most = Settings.max_concurrent_streams
    prefaced = False

    def acknowledge(self):
        if self.prefaced:
            return super().acknowledge()
        self.prefaced = True
        return {}


def consumed(window, size, strict=WindowManager.window_consumed):
    """Nothing needs no window, however far below zero it is (section 6.9.1); hyper-h2 wants one."""
    if size:
        strict(window, size)


WindowManager.window_consumed = consumed


class Asked:
    """A request, and what is left to send of its response."""

    def __init__(self, fields):
        self.method, self.path = fields[":method"], fields[":path"]
        self.content, self.whole = b"", False
        self.left, self.trailers = None, True


class Origin(asyncio.Protocol):
    connections, seen, held = 0, set(), []

    def connection_made(self, transport):
        self.transport, self.number, self.requests = transport, Origin.connections, {}
        Origin.connections += 1
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = Lenient(client=False)
        self.h2.initiate_connection()
        # Only what a peer has acknowledged may be held against it: it may send before it knows (section 6.5.3).
        self.h2.update_settings({
            SettingCodes.MAX_CONCURRENT_STREAMS: 1 if "one" in ODD else 100,
            SettingCodes.INITIAL_WINDOW_SIZE: 7 if "windows" in ODD else 65535,
            SettingCodes.HEADER_TABLE_SIZE: 0 if "table" in ODD else 4096,
        })
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        self.transport.write(shredded(data) if "pieces" in ODD else data)

    def raw(self, frame):
        """Past hyper-h2, which would let nothing follow some frames."""
        self.flush()
        self.transport.write(frame.serialize())

    def data_received(self, data):
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as error:
            say({"violation": repr(error), "connection": self.number})
            self.flush()
            return self.transport.close()
        for event in events:
            self.happened(event)
        self.flush()

    def happened(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, RequestReceived) and self.h2.open_inbound_streams > self.h2.local_settings.most:
            self.h2.reset_stream(stream, REFUSED_STREAM)
        elif isinstance(event, RequestReceived):
            self.requests[stream] = asked = Asked(dict(event.headers))
            self.oddities(stream)
            if event.stream_ended is None and asked.path.startswith("/early/") and self.first(asked):
                self.early(stream, asked)
        elif isinstance(event, DataReceived):
            asked = self.requests.get(stream)
            if asked:
                asked.content += event.data
            self.credit(stream, event.flow_controlled_length)
        elif isinstance(event, StreamEnded):
            if asked := self.requests.get(stream):
                asked.whole = True
                self.act(stream, asked)
        elif isinstance(event, StreamReset):
            self.requests.pop(stream, None)
        elif isinstance(event, (WindowUpdated, RemoteSettingsChanged)):
            for stream in list(self.requests):
                self.go_on(stream)
        elif isinstance(event, ConnectionTerminated):
            self.transport.close()

    def credit(self, stream, count):
        if count == 0:
            return
        if "windows" not in ODD:
            return self.h2.acknowledge_received_data(count, stream)
        self.h2.increment_flow_control_window(count)
        if stream in self.requests:
            self.h2.increment_flow_control_window(count, stream)

    def oddities(self, stream):
        if "chatter" in ODD:
            self.h2.ping(b"are you?")
            self.raw(PriorityFrame(stream, stream_weight=7, depends_on=0))
            # A frame, and a setting, that nobody knows.
            self.raw(SettingsFrame(0, settings={0xf0f0: 1}))
            self.transport.write(b"\0\0\x03\xfa\x55" + stream.to_bytes(4, "big") + b"abc")
        if "changing" in ODD:
            size = [0, 1, 65535, 3][stream // 2 % 4]
            self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size, SettingCodes.MAX_CONCURRENT_STREAMS: 1 + stream % 3})
            self.flush()
            self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65535, SettingCodes.MAX_CONCURRENT_STREAMS: 5})

    def first(self, asked):
        new = asked.path not in Origin.seen
        Origin.seen.add(asked.path)
        return new

    def record(self, stream, asked):
        say({"connection": self.number, "stream": stream, "method": asked.method, "path": asked.path,
             "content": len(asked.content), "whole": asked.whole})

    def early(self, stream, asked):
        self.record(stream, asked)
        self.head(stream)
        self.h2.send_data(stream, b"early", end_stream=True)
        self.h2.reset_stream(stream, int(asked.path.split("/")[2]))
        del self.requests[stream]

    def act(self, stream, asked):
        self.record(stream, asked)
        parts = asked.path.split("/")
        what = parts[1]
        if asked.path == "/release":
            for origin, other in Origin.held:
                origin.answer(other, origin.requests[other])
                origin.flush()
            Origin.held.clear()
        if what not in ("reset", "goaway", "close", "hold") or not self.first(asked):
            return self.answer(stream, asked)
        if what == "hold":
            Origin.held.append((self, stream))
        elif what == "reset":
            self.h2.reset_stream(stream, int(parts[2]))
            del self.requests[stream]
        elif what == "close":
            if parts[2] == "within":
                self.head(stream)
                self.h2.send_data(stream, b"half of")
                self.flush()
            self.transport.close()
        else:
            code = int(parts[3])
            named = stream - 2 if parts[2] == "below" else stream
            if parts[2] == "two":
                self.raw(GoAwayFrame(0, last_stream_id=LAST))
            # Stream 0, where the first was not processed.
            self.raw(GoAwayFrame(0, last_stream_id=max(named, 0), error_code=code))
            if parts[2] == "lost":
                self.transport.close()
            elif parts[2] != "below":
                self.answer(stream, asked)

    def head(self, stream):
        self.h2.send_headers(stream, [(":status", "200"), ("server", "hyper-h2"), ("x-long", "again and again " * 9)])

    def answer(self, stream, asked):
        self.head(stream)
        asked.left = asked.content[::-1]
        if "chatter" in ODD:
            self.h2.send_data(stream, b"")
        self.go_on(stream)

    def go_on(self, stream):
        asked = self.requests.get(stream)
        if asked is None or asked.left is None:
            return
        while asked.left:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(asked.left))
            if "pieces" in ODD:
                # Padding counts: it is added after hyper-h2 has counted.
                room = min(room, 1000)
            if room <= 0:
                return
            self.h2.send_data(stream, asked.left[:room])
            asked.left = asked.left[room:]
        self.h2.send_headers(stream, [("x-sum", str(len(asked.content)))], end_stream=True)
        del self.requests[stream]


def say(what):
    print(json.dumps(what), flush=True)


async def main():
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
