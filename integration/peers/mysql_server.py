"""A server of MySQL's protocol: it greets, checks the password (`secret`) and answers the two queries its client asks."""

import hashlib
import os
import re
import socketserver
import struct
import sys

PASSWORD = b"secret"
LONG_PASSWORD, PROTOCOL_41, SECURE, PLUGIN_AUTH = 1, 0x200, 0x8000, 0x80000
CONNECT_WITH_DB = 8
CAPABILITIES = LONG_PASSWORD | CONNECT_WITH_DB | PROTOCOL_41 | SECURE | PLUGIN_AUTH
AUTOCOMMIT, UTF8MB4, VAR_STRING = 2, 45, 0xFD
PLUGIN = b"mysql_native_password"


def sha1(*parts):
    return hashlib.sha1(b"".join(parts)).digest()


def expected(salt):
    first = sha1(PASSWORD)
    return bytes(a ^ b for a, b in zip(first, sha1(salt, sha1(first))))


def counted(value):
    """A text behind its length."""
    if len(value) < 251:
        return bytes([len(value)]) + value
    if len(value) < 1 << 16:
        return b"\xfc" + struct.pack("<H", len(value)) + value
    return b"\xfd" + struct.pack("<I", len(value))[:3] + value


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(30)
        self.sequence = 0
        salt = bytes(1 + byte % 127 for byte in os.urandom(20))
        self.greet(salt)
        if self.proven(self.receive()) != expected(salt):
            return self.error(1045, b"28000", b"Access denied")
        self.fine()
        while True:
            self.sequence = 0
            packet = self.receive()
            if packet is None or packet[:1] == b"\x01":
                return
            if packet[:1] == b"\x03":
                self.query(packet[1:])
            else:
                self.fine()

    def exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.request.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def receive(self):
        head = self.exactly(4)
        if head is None:
            return None
        assert head[3] == self.sequence, "packets are numbered"
        self.sequence += 1
        return self.exactly(int.from_bytes(head[:3], "little"))

    def send(self, payload):
        self.request.sendall(struct.pack("<I", len(payload))[:3] + bytes([self.sequence]) + payload)
        self.sequence = (self.sequence + 1) % 256

    def greet(self, salt):
        fixed = struct.pack("<HBHHB", CAPABILITIES & 0xFFFF, UTF8MB4, AUTOCOMMIT, CAPABILITIES >> 16, 21)
        parts = [b"\x0a", b"8.0.0-peer\0", struct.pack("<I", 7), salt[:8], b"\0", fixed, bytes(10)]
        self.send(b"".join(parts) + salt[8:] + b"\0" + PLUGIN + b"\0")

    def proven(self, packet):
        """What the client proves the password with."""
        capabilities = struct.unpack("<I", packet[:4])[0]
        assert capabilities & PROTOCOL_41 and capabilities & SECURE, hex(capabilities)
        _, rest = packet[32:].split(b"\0", 1)
        return rest[1:1 + rest[0]]

    def fine(self):
        self.send(b"\0\0\0" + struct.pack("<HH", AUTOCOMMIT, 0))

    def error(self, code, state, text):
        self.send(b"\xff" + struct.pack("<H", code) + b"#" + state + text)

    def query(self, text):
        plus = re.fullmatch(rb"SELECT (\d+) \+ (\d+)", text)
        repeat = re.fullmatch(rb"SELECT REPEAT\('(\w)', (\d+)\)", text)
        if plus:
            self.rows([b"%d" % (int(plus[1]) + int(plus[2]))])
        elif repeat:
            self.rows([repeat[1] * int(repeat[2])])
        elif text.startswith(b"SELECT"):
            self.error(1064, b"42000", b"You have an error in your SQL syntax")
        else:
            self.fine()

    def rows(self, rows):
        end = b"\xfe" + struct.pack("<HH", 0, AUTOCOMMIT)
        names = [counted(name) for name in (b"def", b"", b"", b"", b"value", b"")]
        column = b"".join(names) + b"\x0c" + struct.pack("<HIBHB", UTF8MB4, 1 << 20, VAR_STRING, 0, 0) + b"\0\0"
        for packet in [b"\x01", column, end, *[counted(row) for row in rows], end]:
            self.send(packet)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
