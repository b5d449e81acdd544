"""What both ends need: TLS 1.3 with certificates of both sides, and a connection of the `h2` package over it."""

import socket
import ssl

import h2.config
import h2.connection
import h2.events


def context(server, chain, key, roots):
    """Settings of TLS: both ends show certificates, names are nobody's business here."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(chain, key)
    made.load_verify_locations(roots)
    made.set_alpn_protocols(["h2"])
    return made


class Peer:
    """A connection that is pumped until something is the case."""

    def __init__(self, stream, client):
        self.stream = stream
        self.stream.settimeout(20)
        # Version 4.1, which Debian has, takes CONNECT without a path for invalid, sent or received.
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config=config)
        self.data, self.heads, self.ended, self.resets, self.others = {}, {}, set(), {}, []
        self.closed = False
        # Whether room is given back for what was read.
        self.generous = True

    def flush(self):
        self.stream.sendall(self.h2.data_to_send())

    def pump(self, until):
        while not until():
            self.flush()
            received = self.stream.recv(65536)
            if not received:
                self.closed = True
                return
            for event in self.h2.receive_data(received):
                self.on(event)
        self.flush()

    def on(self, event):
        stream = getattr(event, "stream_id", None)
        if isinstance(event, (h2.events.ResponseReceived, h2.events.RequestReceived)):
            self.heads[stream] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.data[stream] = self.data.get(stream, b"") + event.data
            if self.generous:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(stream)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[stream] = int(event.error_code)
        else:
            self.others.append(type(event).__name__)

    def saw(self, name):
        return self.others.count(name)

    def room(self, stream):
        return min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, 16000)

    def send(self, stream, data, padding=None):
        """Sends all of it, and waits for room where there is none."""
        while data:
            room = self.room(stream) - (0 if padding is None else padding + 1)
            if room <= 0:
                self.pump(lambda: self.room(stream) > 0 or stream in self.resets)
                if stream in self.resets:
                    return
                continue
            self.h2.send_data(stream, data[:room], pad_length=padding)
            data = data[room:]
            self.flush()

    def say(self, what):
        print(what, flush=True)


def pattern(length):
    """Bytes that do not look alike at any two places near each other."""
    return (PERIOD * (length // len(PERIOD) + 1))[:length]


PERIOD = bytes((at * 31 + at // 251) & 0xFF for at in range(251 * 256))


def dial(port, tls):
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(raw)
