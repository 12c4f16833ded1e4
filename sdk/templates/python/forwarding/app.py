"""Tells the upstream a label in place of the client's address, and nothing of the hops before it."""

import json
import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import identity

label = "_client"


class Plugin(exports.Plugin):
    def configure(self, given):
        global label
        settings = json.loads(given)
        for key in settings:
            if key != "label":
                raise Err(f"{key}: no such setting")
        # An obfuscated identifier: it begins with an underscore (RFC 7239, section 6.3).
        label = settings.get("label", "_client")
        if not isinstance(label, str) or not re.fullmatch("_[A-Za-z0-9._-]*", label):
            raise Err(f"label: {json.dumps(label)} is not an underscore and letters, digits, . _ or -")

    def settings_schema(self):
        return None


class Forwarding(exports.Forwarding):
    def identify(self):
        chain = identity.proposed()
        if not chain:
            return
        nearest = chain[-1]
        nearest.for_ = identity.Node_Obfuscated(label)
        try:
            identity.set_elements([nearest])
        except Err:
            # A chain that cannot be written leaves the configured rule in force.
            pass
