"""A client of gRPC that asks for everything a proxy may break, and says `ok`, or what was wrong."""

import sys
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1])
flaky = len(sys.argv) > 2
unary = channel.unary_unary("/echo.Echo/Unary")


def status(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


answer, call = unary.with_call(b"hello", timeout=10, wait_for_ready=True)
assert answer == b"echo:hello", answer
assert ("x-trailer", "end") in [tuple(pair) for pair in call.trailing_metadata()], call.trailing_metadata()

failed = status(lambda: unary(b"fail", timeout=10))
assert failed.code() == grpc.StatusCode.FAILED_PRECONDITION, failed
assert failed.details() == "not like this", failed

unknown = status(lambda: channel.unary_unary("/echo.Echo/Nothing")(b"", timeout=10))
assert unknown.code() == grpc.StatusCode.UNIMPLEMENTED, unknown

begun = time.monotonic()
late = status(lambda: unary(b"slow", timeout=0.5))
assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED, late
assert time.monotonic() - begun < 4, "the deadline was not kept"

numbers = list(channel.unary_stream("/echo.Echo/ServerStream")(b"500", timeout=20))
assert numbers == [b"%d" % number for number in range(500)], len(numbers)

counted = channel.stream_unary("/echo.Echo/ClientStream")(iter([b"x"] * 500), timeout=20)
assert counted == b"500", counted


def questions():
    for number in range(50):
        yield b"%d" % number


echoes = list(channel.stream_stream("/echo.Echo/Both")(questions(), timeout=20))
assert echoes == [b"echo:%d" % number for number in range(50)], echoes

big = b"x" * 1_000_000
assert unary(big, timeout=20) == b"echo:" + big

if flaky:
    assert unary(b"flaky" + sys.argv[2].encode(), timeout=10).startswith(b"echo:flaky")
print("ok")
