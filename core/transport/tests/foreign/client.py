"""CONNECT streams of the `h2` package to a server of ours: client.py PORT CHAIN KEY ROOTS.

Says what was tried; fails on the first thing that is not as it should be. The server echoes for 10.0.0.*, counts for 10.2.0.*,
sends for 10.3.0.*, and refuses everybody else with 503.
"""

import sys

import h2.errors
import h2.settings

from common import Peer, context, dial, pattern

Codes = h2.settings.SettingCodes


class Client(Peer):
    def connect(self, authority, extra=()):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority), *extra])
        self.pump(lambda: stream in self.heads or stream in self.resets)
        return stream


def echo(client):
    # Repeated fields make this client use its table and Huffman codes.
    for n in range(3):
        stream = client.connect("10.0.0.1:80", [("baggage", "service.name=web"), ("x-long", "v" * 2000)])
        assert client.heads[stream][":status"] == "200", client.heads
        message = pattern(10_000 * (n + 1))
        client.send(stream, message, padding=7 * n)
        client.h2.end_stream(stream)
        client.pump(lambda: stream in client.ended)
        assert client.data[stream] == message
    client.say("connect, echo, half-close, padding, HPACK table: ok")


def upload(client):
    stream = client.connect("10.2.0.1:80")
    message = pattern(6 << 20)
    client.send(stream, message)
    client.h2.end_stream(stream)
    client.pump(lambda: stream in client.ended)
    assert client.data[stream] == str(len(message)).encode(), client.data[stream]
    client.say("upload of 6 MiB: ok")


def download(client):
    stream = client.connect("10.3.0.1:80")
    client.send(stream, b"6291456\n")
    client.pump(lambda: stream in client.ended)
    assert client.data[stream] == pattern(6 << 20)
    # Who has sent all and waits for nothing resets the rest, without blame.
    assert client.resets.get(stream, 0) == 0, client.resets
    client.say("download of 6 MiB, our half still open: ok")


def refusals(client):
    refused = client.connect("10.1.0.1:80")
    assert client.heads[refused][":status"] == "503", client.heads[refused]
    stream = client.h2.get_next_available_stream_id()
    get = [(":method", "GET"), (":authority", "10.0.0.1:80"), (":scheme", "http"), (":path", "/")]
    client.h2.send_headers(stream, get, end_stream=True)
    client.pump(lambda: stream in client.heads)
    assert client.heads[stream][":status"] == "400", client.heads[stream]
    client.say("refusal, GET is told 400: ok")


def resets(client):
    held = [client.connect(f"10.0.0.{n}:80") for n in range(2, 12)]
    for stream in held:
        client.send(stream, b"to be cut")
        client.h2.reset_stream(stream, h2.errors.ErrorCodes.CONNECT_ERROR)
    before = client.saw("PingAckReceived")
    client.h2.ping(b"12345678")
    client.pump(lambda: client.saw("PingAckReceived") > before)
    stream = client.connect("10.0.0.1:80")
    client.send(stream, b"after resets")
    client.pump(lambda: client.data.get(stream) == b"after resets")
    client.say("resets, PING: ok")


def windows(client):
    """The server may send ten bytes, then none, then less than none, then enough."""
    acks = client.saw("SettingsAcknowledged")

    def allow(room):
        nonlocal acks
        acks += 1
        client.h2.update_settings({Codes.INITIAL_WINDOW_SIZE: room, Codes.HEADER_TABLE_SIZE: 0})
        client.pump(lambda: client.saw("SettingsAcknowledged") >= acks)

    client.generous = False
    allow(10)
    stream = client.connect("10.0.0.4:80")
    message = pattern(100)
    client.send(stream, message)
    client.pump(lambda: len(client.data.get(stream, b"")) == 10)
    allow(0)
    client.h2.ping(b"nothing?")
    before = client.saw("PingAckReceived")
    client.pump(lambda: client.saw("PingAckReceived") > before)
    assert client.data[stream] == message[:10], "ten bytes and no more"
    client.h2.increment_flow_control_window(25, stream)
    client.pump(lambda: len(client.data[stream]) == 25)
    allow(200)
    client.pump(lambda: len(client.data[stream]) == 100)
    assert client.data[stream] == message
    client.generous = True
    client.say("a window of ten bytes, of none, below none, and wide again: ok")


def many(client):
    streams = [client.connect(f"10.0.0.{n}:80") for n in range(20, 80)]
    for turn in range(5):
        for stream in streams:
            client.send(stream, pattern(3000)[turn * 500 : turn * 500 + 500])
    for stream in streams:
        client.h2.end_stream(stream)
    client.pump(lambda: all(stream in client.ended for stream in streams))
    assert all(client.data[stream] == pattern(2500) for stream in streams)
    client.say("60 streams at once: ok")


def main():
    port, chain, key, roots = sys.argv[1:]
    stream = dial(int(port), context(False, chain, key, roots))
    assert stream.version() == "TLSv1.3" and stream.selected_alpn_protocol() == "h2", stream.version()
    client = Client(stream, True)
    client.h2.initiate_connection()
    for part in [echo, upload, download, refusals, resets, many, windows]:
        part(client)
    client.h2.close_connection()
    client.flush()
    client.say("all: ok")


if __name__ == "__main__":
    main()
