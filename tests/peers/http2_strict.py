#!/usr/bin/env python3
"""What an HTTP/2 server must refuse (RFC 9113), asked of a gateway by an independent implementation's frames.

  http2_strict.py HOST:PORT

The gateway speaks HTTP/2 by prior knowledge there, and answers any good GET with 200. Each case is a connection of its own;
prints a line for each and ends with 1 if one went wrong.
"""

import socket
import struct
import sys
import time

import hpack
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, PriorityFrame, PushPromiseFrame,
    RstStreamFrame, SettingsFrame, WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 1, 3, 5, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
GET = [(":method", "GET"), (":scheme", "http"), (":authority", "a.example"), (":path", "/")]
POST = [(":method", "POST")] + GET[1:]
LONGEST = 20


class Connection:
    """Frames out, frames in."""

    def __init__(self, address, settings=None, preface=True):
        self.socket = socket.create_connection(address, timeout=LONGEST)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.buffer = b""
        if preface:
            self.raw(PREFACE)
            self.send(SettingsFrame(0, settings=settings or {}))

    def raw(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # It has hung up: what it said before is what counts.

    def send(self, *frames):
        self.raw(b"".join(frame.serialize() for frame in frames))

    def headers(self, stream, fields, flags=("END_HEADERS", "END_STREAM"), data=None):
        frame = HeadersFrame(stream, data=self.encoder.encode(fields) if data is None else data)
        for flag in flags:
            frame.flags.add(flag)
        self.send(frame)

    def frame(self):
        """The next frame; None at the end of the connection."""
        while True:
            if len(self.buffer) >= 9:
                try:
                    frame, length = Frame.parse_frame_header(memoryview(self.buffer[:9]))
                except HyperframeError as error:
                    raise AssertionError(f"the gateway sent no frame: {error}")
                if len(self.buffer) >= 9 + length:
                    frame.parse_body(memoryview(self.buffer[9:9 + length]))
                    self.buffer = self.buffer[9 + length:]
                    return frame
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self.buffer += data

    def until(self, wanted):
        """The first frame for which `wanted`; acknowledges settings on the way."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            frame = self.frame()
            if frame is None:
                return None
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                acknowledgement = SettingsFrame(0)
                acknowledgement.flags.add("ACK")
                self.send(acknowledgement)
            if wanted(frame):
                return frame
        raise AssertionError("nothing of the kind came in time")

    def status(self, stream):
        """The status of the response on a stream, or how the stream or connection ended."""
        frame = self.until(lambda f: (f.stream_id == stream and isinstance(f, (HeadersFrame, RstStreamFrame))) or isinstance(f, GoAwayFrame))
        if isinstance(frame, HeadersFrame):
            # hpack gives texts or bytes, by version.
            text = lambda value: value.decode() if isinstance(value, bytes) else value
            return int(dict((text(name), text(value)) for name, value in self.decoder.decode(frame.data))[":status"])
        if isinstance(frame, RstStreamFrame):
            return f"reset {frame.error_code}"
        return "closed" if frame is None else f"goaway {frame.error_code}"

    def ends(self, *codes):
        """The connection ends, with one of these codes (any, if none is given), or the unspecific one (section 7)."""
        codes += (PROTOCOL_ERROR,) if codes else ()
        frame = self.until(lambda f: isinstance(f, GoAwayFrame) and (f.error_code != 0 or 0 in codes))
        assert frame is None or not codes or frame.error_code in codes, f"GOAWAY says {frame.error_code}, not {codes}"
        assert self.until(lambda f: False) is None, "the connection stays"

    def stream_ends(self, stream, *codes):
        """A stream error: RST_STREAM, or a connection error, which is allowed in its place (section 5.4.2)."""
        frame = self.until(lambda f: isinstance(f, GoAwayFrame) or (isinstance(f, RstStreamFrame) and f.stream_id == stream))
        code = None if frame is None else frame.error_code
        assert code is None or code in codes + (PROTOCOL_ERROR,), f"it says {code}, not {codes}"


CASES = []


def case(section, name):
    def note(run):
        CASES.append((section, name, run))
        return run
    return note


@case("3.4", "a good request is answered")
def _(c):
    c.headers(1, GET)
    assert c.status(1) == 200


@case("3.4", "an invalid preface ends the connection")
def _(c):
    c.socket.close()
    other = Connection(ADDRESS, preface=False)
    other.raw(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + b"\0" * 64)
    data = b""
    try:
        while piece := other.socket.recv(4096):
            data += piece
    except ConnectionError:
        pass
    assert b" 200" not in data


@case("4.1", "unknown frame types are ignored")
def _(c):
    c.raw(b"\0\0\x03\xfa\0\0\0\0\0abc")
    c.headers(1, GET)
    assert c.status(1) == 200


@case("4.2", "a frame larger than SETTINGS_MAX_FRAME_SIZE")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.raw(struct.pack(">I", 16385)[1:] + b"\0\0" + struct.pack(">I", 1) + b"x" * 16385)
    c.stream_ends(1, FRAME_SIZE_ERROR)


@case("4.3", "a field block that does not decode")
def _(c):
    c.headers(1, GET, data=b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
    c.ends(COMPRESSION_ERROR)


@case("4.3", "an index that no table has")
def _(c):
    c.headers(1, GET, data=b"\xfe")
    c.ends(COMPRESSION_ERROR)


@case("5.1", "DATA on an idle stream")
def _(c):
    c.send(DataFrame(5, b"x"))
    c.ends(PROTOCOL_ERROR)


@case("5.1", "RST_STREAM on an idle stream")
def _(c):
    c.send(RstStreamFrame(5, error_code=8))
    c.ends(PROTOCOL_ERROR)


@case("5.1", "WINDOW_UPDATE on an idle stream")
def _(c):
    c.send(WindowUpdateFrame(5, window_increment=5))
    c.ends(PROTOCOL_ERROR)


@case("5.1", "CONTINUATION without HEADERS")
def _(c):
    frame = ContinuationFrame(1, c.encoder.encode(GET))
    frame.flags.add("END_HEADERS")
    c.send(frame)
    c.ends(PROTOCOL_ERROR)


@case("5.1", "DATA after END_STREAM")
def _(c):
    c.headers(1, POST)
    c.send(DataFrame(1, b"x"))
    c.stream_ends(1, STREAM_CLOSED)


@case("5.1.1", "an even stream id")
def _(c):
    c.headers(2, GET)
    c.ends(PROTOCOL_ERROR)


@case("5.1.1", "a stream id lower than the last")
def _(c):
    c.headers(5, GET)
    c.status(5)
    c.headers(3, GET)
    c.ends(PROTOCOL_ERROR, STREAM_CLOSED)


@case("6.1", "DATA on stream 0")
def _(c):
    c.raw(b"\0\0\x01\0\0\0\0\0\0x")
    c.ends(PROTOCOL_ERROR)


@case("6.1", "padding as long as the frame")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.raw(b"\0\0\x05\0\x08" + struct.pack(">I", 1) + b"\x06abcd")
    c.ends(PROTOCOL_ERROR)


@case("6.2", "HEADERS on stream 0")
def _(c):
    block = c.encoder.encode(GET)
    c.raw(struct.pack(">I", len(block))[1:] + b"\x01\x05\0\0\0\0" + block)
    c.ends(PROTOCOL_ERROR)


@case("6.2", "another frame within a field block")
def _(c):
    c.headers(1, GET, ("END_STREAM",))
    c.send(PriorityFrame(3))
    c.ends(PROTOCOL_ERROR)


@case("6.4", "RST_STREAM of a wrong length")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.raw(b"\0\0\x03\x03\0" + struct.pack(">I", 1) + b"\0\0\0")
    c.ends(FRAME_SIZE_ERROR)


@case("6.5", "SETTINGS on a stream")
def _(c):
    c.raw(b"\0\0\x06\x04\0" + struct.pack(">I", 1) + b"\0\x03\0\0\0\x64")
    c.ends(PROTOCOL_ERROR)


@case("6.5", "SETTINGS of a length that is no multiple of six")
def _(c):
    c.raw(b"\0\0\x05\x04\0\0\0\0\0" + b"\0\x03\0\0\0")
    c.ends(FRAME_SIZE_ERROR)


@case("6.5", "an acknowledgement with a payload")
def _(c):
    c.raw(b"\0\0\x06\x04\x01\0\0\0\0" + b"\0\x03\0\0\0\x64")
    c.ends(FRAME_SIZE_ERROR)


@case("6.5.2", "ENABLE_PUSH other than 0 or 1")
def _(c):
    c.raw(b"\0\0\x06\x04\0\0\0\0\0" + b"\0\x02\0\0\0\x02")
    c.ends(PROTOCOL_ERROR)


@case("6.5.2", "INITIAL_WINDOW_SIZE above 2^31-1")
def _(c):
    c.raw(b"\0\0\x06\x04\0\0\0\0\0" + b"\0\x04\x80\0\0\0")
    c.ends(FLOW_CONTROL_ERROR)


@case("6.5.2", "MAX_FRAME_SIZE below 16384")
def _(c):
    c.raw(b"\0\0\x06\x04\0\0\0\0\0" + b"\0\x05\0\0\0\x01")
    c.ends(PROTOCOL_ERROR)


@case("6.5.2", "unknown settings are ignored")
def _(c):
    c.raw(b"\0\0\x06\x04\0\0\0\0\0" + b"\x7f\x7f\0\0\0\x01")
    c.headers(1, GET)
    assert c.status(1) == 200


@case("6.6", "PUSH_PROMISE from a client")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    frame = PushPromiseFrame(1, promised_stream_id=2, data=c.encoder.encode(GET))
    frame.flags.add("END_HEADERS")
    c.send(frame)
    c.ends(PROTOCOL_ERROR)


@case("6.7", "PING is answered with its payload")
def _(c):
    c.send(PingFrame(0, b"12345678"))
    pong = c.until(lambda f: isinstance(f, PingFrame) and "ACK" in f.flags)
    assert pong is not None and pong.opaque_data == b"12345678"


@case("6.7", "PING on a stream")
def _(c):
    c.raw(b"\0\0\x08\x06\0" + struct.pack(">I", 1) + b"12345678")
    c.ends(PROTOCOL_ERROR)


@case("6.7", "PING of a wrong length")
def _(c):
    c.raw(b"\0\0\x07\x06\0\0\0\0\0" + b"1234567")
    c.ends(FRAME_SIZE_ERROR)


@case("6.8", "GOAWAY on a stream")
def _(c):
    c.raw(b"\0\0\x08\x07\0" + struct.pack(">I", 1) + b"\0" * 8)
    c.ends(PROTOCOL_ERROR)


@case("6.9", "WINDOW_UPDATE of nought on the connection")
def _(c):
    c.raw(b"\0\0\x04\x08\0\0\0\0\0" + b"\0" * 4)
    c.ends(PROTOCOL_ERROR)


@case("6.9", "WINDOW_UPDATE of nought on a stream")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.raw(b"\0\0\x04\x08\0" + struct.pack(">I", 1) + b"\0" * 4)
    c.stream_ends(1, PROTOCOL_ERROR)


@case("6.9", "WINDOW_UPDATE of a wrong length")
def _(c):
    c.raw(b"\0\0\x03\x08\0\0\0\0\0" + b"\0\0\x01")
    c.ends(FRAME_SIZE_ERROR)


@case("6.9.1", "a connection window above 2^31-1")
def _(c):
    c.send(WindowUpdateFrame(0, window_increment=2**31 - 1), WindowUpdateFrame(0, window_increment=2**31 - 1))
    c.ends(FLOW_CONTROL_ERROR)


@case("6.9.1", "a stream window above 2^31-1")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.send(WindowUpdateFrame(1, window_increment=2**31 - 1), WindowUpdateFrame(1, window_increment=2**31 - 1))
    c.stream_ends(1, FLOW_CONTROL_ERROR)


def malformed(name, fields, section="8.1.1"):
    @case(section, name)
    def _(c):
        c.headers(1, fields)
        outcome = c.status(1)
        assert outcome in ("reset 1", "goaway 1", "closed", 400), outcome


malformed("an upper-case field name", GET + [("X-Upper", "1")], "8.2.1")
malformed("a space in a field name", GET + [("x y", "1")], "8.2.1")
malformed("a colon in a field name", GET + [("x:y", "1")], "8.2.1")
malformed("a line feed in a value", GET + [("x", "a\nb: c")], "8.2.1")
malformed("a carriage return in a value", GET + [("x", "a\rb")], "8.2.1")
malformed("NUL in a value", GET + [("x", "a\0b")], "8.2.1")
malformed("a value with leading white space", GET + [("x", " a")], "8.2.1")
malformed("a value with trailing white space", GET + [("x", "a\t")], "8.2.1")
malformed("connection", GET + [("connection", "close")], "8.2.2")
malformed("transfer-encoding", POST + [("transfer-encoding", "chunked")], "8.2.2")
malformed("keep-alive", GET + [("keep-alive", "1")], "8.2.2")
malformed("proxy-connection", GET + [("proxy-connection", "keep-alive")], "8.2.2")
malformed("upgrade", GET + [("upgrade", "websocket")], "8.2.2")
malformed("te other than trailers", GET + [("te", "gzip")], "8.2.2")
malformed("an unknown pseudo-header", GET + [(":odd", "1")], "8.3")
malformed("a response's pseudo-header", GET + [(":status", "200")], "8.3")
malformed("a pseudo-header after a field", [GET[0], ("x", "1")] + GET[1:], "8.3")
malformed("no :method", GET[1:], "8.3.1")
malformed("no :scheme", [GET[0]] + GET[2:], "8.3.1")
malformed("no :path", GET[:3], "8.3.1")
malformed("an empty :path", GET[:3] + [(":path", "")], "8.3.1")
malformed("a :path that does not begin with a slash", GET[:3] + [(":path", "x")], "8.3.1")
malformed("a :path with a space", GET[:3] + [(":path", "/a b")], "8.3.1")
malformed("a :path with a line feed", GET[:3] + [(":path", "/\r\nx: y")], "8.3.1")
malformed("* for another method than OPTIONS", GET[:3] + [(":path", "*")], "8.3.1")
malformed("two :path", GET + [(":path", "/b")], "8.3.1")
malformed("two :method", [GET[0]] + GET, "8.3.1")
malformed("a :method with a space", [(":method", "GET /x")] + GET[1:], "8.3.1")
malformed(":authority with userinfo", GET[:2] + [(":authority", "user@a.example")] + GET[3:], "8.3.1")
malformed(":authority and host that differ", GET + [("host", "b.example")], "8.3.1")
malformed("neither :authority nor host", GET[:2] + GET[3:], "8.3.1")
malformed("content-length without content", POST + [("content-length", "5")])
malformed("content-length that is no number", POST + [("content-length", "+5")])
malformed("two content-lengths that differ", POST + [("content-length", "0"), ("content-length", "1")])


@case("8.1.1", "content longer than content-length")
def _(c):
    c.headers(1, POST + [("content-length", "2")], ("END_HEADERS",))
    frame = DataFrame(1, b"three")
    frame.flags.add("END_STREAM")
    c.send(frame)
    outcome = c.status(1)
    assert outcome in ("reset 1", "goaway 1", "closed", 400), outcome


@case("8.1.1", "content shorter than content-length")
def _(c):
    c.headers(1, POST + [("content-length", "9")], ("END_HEADERS",))
    frame = DataFrame(1, b"three")
    frame.flags.add("END_STREAM")
    c.send(frame)
    outcome = c.status(1)
    assert outcome in ("reset 1", "goaway 1", "closed", 400), outcome


@case("8.1", "a pseudo-header in trailers")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.headers(1, [(":path", "/x")])
    outcome = c.status(1)
    # Dropping it is all that matters to whoever is behind: no trailer can change where a request went.
    assert outcome in ("reset 1", "goaway 1", "closed", 400, 200), outcome


@case("8.1", "trailers without END_STREAM")
def _(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.headers(1, [("x", "1")], ("END_HEADERS",))
    c.stream_ends(1, PROTOCOL_ERROR)


@case("8.2.3", "cookie crumbs are taken")
def _(c):
    c.headers(1, GET + [("cookie", "a=1"), ("cookie", "b=2")])
    assert c.status(1) == 200


def flood(section, name, write, codes=(ENHANCE_YOUR_CALM, PROTOCOL_ERROR)):
    """Either the connection ends with a reason, or it goes on and answers; others are served meanwhile in any case."""

    @case(section, name)
    def _(c):
        write(c)
        other = Connection(ADDRESS)
        other.headers(1, GET)
        assert other.status(1) == 200, "another client is not served"
        c.headers(20001, GET)
        outcome = c.status(20001)
        fine = (200, 431, "closed", "reset 7", "reset 11") + tuple(f"goaway {code}" for code in codes)
        assert outcome in fine, outcome
        return f"{outcome}"


def rapid_reset(c):
    for stream in range(1, 4001, 2):
        frame = HeadersFrame(stream, data=c.encoder.encode(GET))
        frame.flags.add("END_HEADERS")
        frame.flags.add("END_STREAM")
        c.send(frame, RstStreamFrame(stream, error_code=8))


def made_you_reset(c):
    for stream in range(1, 4001, 2):
        frame = HeadersFrame(stream, data=c.encoder.encode(POST))
        frame.flags.add("END_HEADERS")
        c.raw(frame.serialize() + b"\0\0\x04\x08\0" + struct.pack(">I", stream) + b"\0" * 4)


def continuations(c):
    c.headers(1, GET, ("END_STREAM",))
    for _ in range(2000):
        c.send(ContinuationFrame(1, c.encoder.encode([("x-more", "y" * 500)])))


def empty_continuations(c):
    c.headers(1, GET, ("END_STREAM",))
    for _ in range(20000):
        c.send(ContinuationFrame(1, b""))


def empty_data(c):
    c.headers(1, POST, ("END_HEADERS",))
    c.raw(DataFrame(1, b"").serialize() * 50000)
    frame = DataFrame(1, b"")
    frame.flags.add("END_STREAM")
    c.send(frame)


def hpack_bomb(c):
    # One large value into the table, then a reference to it a thousand times in each block.
    large = c.encoder.encode(GET + [("x-large", "y" * 3000)])
    c.headers(1, None, data=large)
    index = c.encoder.encode([("x-large", "y" * 3000)])
    for stream in range(3, 41, 2):
        c.headers(stream, None, data=c.encoder.encode(GET) + index * 4000)


flood("10.5", "rapid reset (CVE-2023-44487)", rapid_reset)
flood("10.5", "resets that the server is made to send (CVE-2025-8671)", made_you_reset)
flood("10.5", "CONTINUATION without an end", continuations, (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, COMPRESSION_ERROR))
flood("10.5", "empty CONTINUATION without an end", empty_continuations, (ENHANCE_YOUR_CALM, PROTOCOL_ERROR))
flood("10.5", "empty DATA", empty_data)
flood("10.5", "SETTINGS", lambda c: c.raw(SettingsFrame(0).serialize() * 20000))
flood("10.5", "PING", lambda c: c.raw(PingFrame(0, b"12345678").serialize() * 20000))
flood("10.5", "PRIORITY", lambda c: c.raw(PriorityFrame(3, depends_on=0).serialize() * 20000))
flood("10.5.1", "a field section that unpacks to megabytes", hpack_bomb, (ENHANCE_YOUR_CALM, PROTOCOL_ERROR, COMPRESSION_ERROR))


ADDRESS = None


def main(arguments):
    global ADDRESS
    host, port = arguments[0].rsplit(":", 1)
    ADDRESS = (host, int(port))
    only = arguments[1] if len(arguments) > 1 else ""
    wrong = 0
    for section, name, run in CASES:
        if only and only not in name:
            continue
        connection = Connection(ADDRESS)
        try:
            said = run(connection)
            print(f"ok     {section:<7} {name}" + (f": {said}" if said else ""), flush=True)
        except (AssertionError, OSError, HyperframeError, KeyError) as error:
            wrong += 1
            print(f"WRONG  {section:<7} {name}: {type(error).__name__} {error}", flush=True)
        finally:
            connection.socket.close()
    print(f"{len(CASES)} cases, {wrong} wrong")
    return 1 if wrong else 0


sys.exit(main(sys.argv[1:]))
