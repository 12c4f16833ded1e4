#!/usr/bin/env python3
"""Calls grpc_server.py by way of a gateway: grpc_client.py HOST:PORT. Says `fine` if every call ends as it should."""

import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1])

large = bytes(range(256)) * 4096
answer, call = channel.unary_unary("/t.S/Unary").with_call(large, timeout=20)
assert answer == large[::-1]
assert ("x-length", str(len(large))) in [(key, value) for key, value in call.trailing_metadata()], call.trailing_metadata()

assert list(channel.unary_stream("/t.S/Many")(b"m", timeout=20)) == [b"m0", b"m1", b"m2"]
assert channel.stream_unary("/t.S/Whole")(iter([b"a" * 70000, b"b", b"c"]), timeout=20) == b"a" * 70000 + b"bc"

# Both ways at once: each message is written only when the answer to the one before it is here.
said = queue.Queue()
said.put(b"one")
answers = channel.stream_stream("/t.S/Talk")(iter(said.get, None), timeout=20)
assert next(answers) == b"ONE"
said.put(b"two")
assert next(answers) == b"TWO"
said.put(None)
assert list(answers) == []


def status(method, **options):
    try:
        channel.unary_unary(method)(b"", **options)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return None, None


assert status("/t.S/Fail", timeout=20) == (grpc.StatusCode.NOT_FOUND, "there is none")
assert status("/t.S/None", timeout=20)[0] == grpc.StatusCode.UNIMPLEMENTED
assert status("/t.S/Slow", timeout=0.5)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
print("fine")
