"""CONNECT streams of the Python `h2` package against the `tunnel_echo` example: tunnel_interop.py PORT.

Needs `pip install h2`. Prints what was tried; fails on the first thing that is not as it should be.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings


class Client:
    def __init__(self, port, settings=None):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(10)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config=config)
        if settings:
            self.h2.update_settings(settings)
        self.h2.initiate_connection()
        self.data, self.heads, self.ended, self.resets, self.others = {}, {}, set(), {}, []

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def pump(self, until):
        while not until():
            self.flush()
            received = self.socket.recv(65536)
            if not received:
                raise EOFError("closed")
            for event in self.h2.receive_data(received):
                self.on(event)
        self.flush()

    def on(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.ResponseReceived):
            self.heads[stream] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.data[stream] = self.data.get(stream, b"") + event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(stream)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[stream] = event.error_code
        else:
            self.others.append(type(event).__name__)

    def connect(self, authority, extra=(), end=False):
        stream = self.h2.get_next_available_stream_id()
        headers = [(":method", "CONNECT"), (":authority", authority), *extra]
        self.h2.send_headers(stream, headers, end_stream=end)
        self.pump(lambda: stream in self.heads or stream in self.resets)
        return stream

    def send(self, stream, data, padding=None):
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, 16000)
            room -= (padding or 0) + 1
            if room <= 0:
                before = self.h2.local_flow_control_window(stream)
                self.pump(lambda: self.h2.local_flow_control_window(stream) > before)
                continue
            self.h2.send_data(stream, data[:room], pad_length=padding)
            data = data[room:]
            self.flush()


def main():
    port = int(sys.argv[1])
    client = Client(port)
    # Repeated headers make this client use its table and Huffman codes.
    for n in range(3):
        stream = client.connect("10.0.0.1:80", [("baggage", "service.name=web"), ("x-long", "v" * 2000)])
        assert client.heads[stream][":status"] == "200", client.heads
        message = bytes(range(256)) * 40 * (n + 1)
        client.send(stream, message, padding=7 * n)
        client.h2.end_stream(stream)
        client.pump(lambda: stream in client.ended)
        assert client.data[stream] == message
    print("connect, echo, half-close, padding, HPACK table: ok")

    bulk = client.connect("10.0.0.2:80")
    message = b"0123456789abcdef" * 65536 * 6
    for at in range(0, len(message), 65536):
        client.send(bulk, message[at : at + 65536])
        client.pump(lambda at=at: len(client.data.get(bulk, b"")) >= at)
    client.h2.end_stream(bulk)
    client.pump(lambda: bulk in client.ended)
    assert client.data[bulk] == message
    print("6 MiB each way over a window of 4 MiB there and 64 KiB back: ok")

    refused = client.connect("10.1.0.1:80")
    assert client.heads[refused][":status"] == "503"
    print("refusal: ok")

    stream = client.h2.get_next_available_stream_id()
    get = [(":method", "GET"), (":authority", "10.0.0.1:80"), (":scheme", "http"), (":path", "/")]
    client.h2.send_headers(stream, get, end_stream=True)
    client.pump(lambda: stream in client.heads)
    assert client.heads[stream][":status"] == "400"
    print("GET is told 400: ok")

    stream = client.connect("10.0.0.3:80")
    client.h2.reset_stream(stream, h2.errors.ErrorCodes.CONNECT_ERROR)
    client.h2.ping(b"12345678")
    client.pump(lambda: "PingAckReceived" in client.others)
    print("reset, PING: ok")

    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10, h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    client.pump(lambda: client.others.count("SettingsAcknowledged") >= 2)
    stream = client.connect("10.0.0.4:80")
    client.send(stream, b"through a window of ten bytes")
    client.pump(lambda: len(client.data.get(stream, b"")) == 29)
    print("a window of ten bytes, a table of none: ok")


if __name__ == "__main__":
    main()
