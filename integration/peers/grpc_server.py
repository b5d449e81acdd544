"""A server of gRPC with all four kinds of calls, without generated code: messages are bytes."""

import sys
import time
from concurrent import futures

import grpc

seen = {}


def unary(request, context):
    context.set_trailing_metadata((("x-trailer", "end"),))
    if request == b"slow":
        time.sleep(5)
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this")
    if request.startswith(b"flaky"):
        seen[request] = seen.get(request, 0) + 1
        if seen[request] == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return b"echo:" + request


def server_stream(request, _):
    for number in range(int(request)):
        yield b"%d" % number


def client_stream(requests, _):
    return b"%d" % sum(1 for _ in requests)


def both(requests, _):
    for request in requests:
        yield b"echo:" + request


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
server.add_insecure_port("0.0.0.0:" + sys.argv[1])
server.start()
server.wait_for_termination()
