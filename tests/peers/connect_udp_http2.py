"""UDP over HTTP/2 (RFC 9298) on Python's h2: connect_udp_http2.py HOST:PORT. Prints a line for each thing it tried."""

import socket
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, ResponseReceived
from h2.settings import SettingCodes

LONGEST = 20


def varint(value):
    return bytes([value]) if value < 0x40 else (value | 0x4000).to_bytes(2, "big")


class Client:
    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=LONGEST)
        self.http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http.initiate_connection()
        self.settings, self.answers, self.data = False, {}, b""
        while not self.settings:
            self.turn()

    def turn(self):
        self.socket.sendall(self.http.data_to_send())
        for event in self.http.receive_data(self.socket.recv(65536)):
            if isinstance(event, RemoteSettingsChanged):
                self.settings = True
            elif isinstance(event, ResponseReceived):
                self.answers[event.stream_id] = dict(event.headers)
            elif isinstance(event, DataReceived):
                self.data += event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.socket.sendall(self.http.data_to_send())

    def ask(self, target):
        stream = self.http.get_next_available_stream_id()
        path = f"/.well-known/masque/udp/{target}"
        fields = [(":method", "CONNECT"), (":protocol", "connect-udp"), (":scheme", "http"), (":authority", "a"),
                  (":path", path), ("capsule-protocol", "?1")]
        self.http.send_headers(stream, fields)
        while stream not in self.answers:
            self.turn()
        return stream, self.answers[stream]

    def payloads(self):
        """Those of DATAGRAM capsules of one or two bytes of length."""
        while len(self.data) > 3:
            length, header = self.data[1], 2
            if length >= 0x40:
                length, header = int.from_bytes(self.data[1:3], "big") & 0x3FFF, 3
            if len(self.data) < header + length:
                return
            assert self.data[0] == 0 and self.data[header] == 0
            yield self.data[header + 1:header + length]
            self.data = self.data[header + length:]


def main(address):
    host, port = address.rsplit(":", 1)
    client = Client((host, int(port)))
    print("settings:", client.http.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL])
    stream, answer = client.ask("dns.example/53/")
    print("opened:", answer[":status"], answer.get("capsule-protocol"))
    came = []
    for batch in range(40):
        for index in range(25):
            payload = b"%d-%d" % (batch, index) * (index + 1)
            client.http.send_data(stream, b"\0" + varint(len(payload) + 1) + b"\0" + payload)
        wanted = len(came) + 25
        while len(came) < wanted:
            client.turn()
            came += client.payloads()
    sent = [b"%d-%d" % (batch, index) * (index + 1) for batch in range(40) for index in range(25)]
    print("a thousand:", sorted(came) == sorted(sent))
    print("refused:", client.ask("dns.example/54/")[1][":status"])
    print("malformed:", client.ask("dns.example/x/")[1][":status"])


main(sys.argv[1])
