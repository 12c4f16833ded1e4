#!/usr/bin/env python3
"""A gRPC server that is not of our making: prints its port, and serves until it is killed. Messages are plain bytes."""

import time
from concurrent import futures

import grpc


def unary(message, context):
    context.set_trailing_metadata((("x-length", str(len(message))),))
    return message[::-1]


def many(message, _):
    for index in range(3):
        yield message + str(index).encode()


def whole(messages, _):
    return b"".join(messages)


def talk(messages, _):
    for message in messages:
        yield message.upper()


def fail(_, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "there is none")


def slow(message, context):
    for _ in range(100):
        if not context.is_active():
            break
        time.sleep(0.1)
    return message


METHODS = {
    "/t.S/Unary": grpc.unary_unary_rpc_method_handler(unary),
    "/t.S/Many": grpc.unary_stream_rpc_method_handler(many),
    "/t.S/Whole": grpc.stream_unary_rpc_method_handler(whole),
    "/t.S/Talk": grpc.stream_stream_rpc_method_handler(talk),
    "/t.S/Fail": grpc.unary_unary_rpc_method_handler(fail),
    "/t.S/Slow": grpc.unary_unary_rpc_method_handler(slow),
}


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        return METHODS.get(details.method)


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Service(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
