"""A server of the `h2` package for tunnels of ours: server.py CHAIN KEY ROOTS. Says its port, then what it saw.

What it does with a stream is in the authority: 10.0.0.* is echoed, 10.1.* is refused with 503, 10.2.* is counted, to 10.3.* it
sends, 10.4.* is reset after the answer, 10.5.* is reset instead of one, and 10.6.* gets room a few bytes at a time. After
10.7.* it says goodbye.
"""

import socket
import sys

import h2.errors
from hyperframe.frame import GoAwayFrame

from common import Peer, context, pattern


class Server(Peer):
    def __init__(self, stream):
        super().__init__(stream, False)
        self.generous = False
        self.waiting = {}

    def serve(self):
        self.h2.initiate_connection()
        done = set()
        while not self.closed:
            before = self.h2.data_to_send()
            self.stream.sendall(before)
            received = self.stream.recv(65536)
            if not received:
                return
            for event in self.h2.receive_data(received):
                self.on(event)
            for stream, head in list(self.heads.items()):
                if stream not in done and self.turn(stream, head):
                    done.add(stream)

    def turn(self, stream, head):
        """What is to be done for a stream now; whether that was all."""
        kind = head[":authority"].split(".")[1]
        new = stream not in self.waiting
        self.waiting.setdefault(stream, b"")
        if stream in self.resets:
            self.say(f"reset {kind} {self.resets[stream]}")
            return True
        if new:
            assert head[":method"] == "CONNECT" and ":path" not in head and ":scheme" not in head, head
            if kind == "5":
                self.h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
                return True
            status = "503" if kind == "1" else "200"
            fields = [(":status", status), ("baggage", "service.name=db"), ("x-long", "v" * 2000)]
            self.h2.send_headers(stream, fields, end_stream=kind == "1")
            if kind == "1":
                return True
            if kind == "4":
                self.h2.reset_stream(stream, h2.errors.ErrorCodes.CONNECT_ERROR)
                return True
            if kind == "7":
                # The package itself would take nothing any more after its own GOAWAY.
                goodbye = GoAwayFrame(0, last_stream_id=stream)
                self.stream.sendall(self.h2.data_to_send() + goodbye.serialize())
        taken = self.data.pop(stream, b"")
        self.give_room(stream, kind, len(taken))
        return getattr(self, {"2": "count", "3": "feed"}.get(kind, "echo"))(stream, taken)

    def give_room(self, stream, kind, taken):
        """All of it at once, or in pieces that are no multiple of anything."""
        while taken:
            piece = min(taken, 777 if kind == "6" else taken)
            self.h2.acknowledge_received_data(piece, stream)
            taken -= piece

    def echo(self, stream, taken):
        self.waiting[stream] += taken
        return self.write(stream) and stream in self.ended and self.end(stream)

    def count(self, stream, taken):
        total = int(self.waiting[stream] or b"0") + len(taken)
        self.waiting[stream] = str(total).encode()
        if stream not in self.ended:
            return False
        return self.write(stream) and self.end(stream)

    def feed(self, stream, taken):
        if b"\n" in taken:
            self.waiting[stream] = pattern(int(taken))
        elif not self.waiting[stream]:
            return False
        return self.write(stream) and self.end(stream)

    def write(self, stream):
        """As much as there is room for; whether that was all."""
        while self.waiting[stream]:
            room = self.room(stream)
            if room <= 0:
                return False
            self.h2.send_data(stream, self.waiting[stream][:room])
            self.waiting[stream] = self.waiting[stream][room:]
        return True

    def end(self, stream):
        self.h2.end_stream(stream)
        return True


def main():
    chain, key, roots = sys.argv[1:]
    tls = context(True, chain, key, roots)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    while True:
        raw, _ = listener.accept()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = Server(tls.wrap_socket(raw, server_side=True))
        names = [value for kind, value in server.stream.getpeercert()["subjectAltName"] if kind == "URI"]
        server.say(f"caller {names[0]}")
        try:
            server.serve()
        except ConnectionError:
            pass
        server.say("closed")


if __name__ == "__main__":
    main()
