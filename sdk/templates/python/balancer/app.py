"""Keeps a user at an endpoint; everybody else goes where least is in flight."""

import json
import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import balancer
from wit_world.imports import endpoints, request

header = "x-user"


class Plugin(exports.Plugin):
    def configure(self, given):
        global header
        settings = json.loads(given)
        for key in settings:
            if key != "header":
                raise Err(f"{key}: no such setting")
        # The field that names the user.
        header = settings.get("header", "x-user")
        if not isinstance(header, str) or not re.fullmatch("[a-z0-9-]+", header):
            raise Err(f"header: {json.dumps(header)} is not a lower-case field name")

    def settings_schema(self):
        return None


class Balancer(exports.Balancer):
    def pick(self):
        user = request.header(header)
        if user is not None:
            # FNV-1a; the gateway's consistent hash makes an endpoint of it.
            hash = 0xCBF29CE484222325
            for byte in user:
                hash = (hash ^ byte) * 0x100000001B3 % 2**64
            return balancer.Choice_Hash(hash)
        in_flight = endpoints.in_flights()
        available = endpoints.availables()
        if not available:
            return balancer.Choice_Pass()
        return balancer.Choice_Endpoint(min(available, key=lambda index: in_flight[index]))
