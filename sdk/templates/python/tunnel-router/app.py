"""Sends each connection where the name in its ClientHello belongs."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import tunnel_router
from wit_world.imports import connection

# The cluster of each name, and of all names below it.
names = {}
# Names that go nowhere, with all below them.
blocked = []
# The cluster of connections that name nothing; without it the listener's routes decide.
nameless = None


class Plugin(exports.Plugin):
    def configure(self, given):
        global names, blocked, nameless
        settings = json.loads(given)
        for key in settings:
            if key not in ("names", "blocked", "nameless"):
                raise Err(f"{key}: no such setting")
        names = settings.get("names")
        if not isinstance(names, dict):
            raise Err("names: not a table")
        for name, cluster in names.items():
            if not isinstance(cluster, str) or not cluster:
                raise Err(f"names.{name}: not a cluster's name")
        nameless = settings.get("nameless")
        if "nameless" in settings and (not isinstance(nameless, str) or not nameless):
            raise Err("nameless: not a cluster's name")
        blocked = settings.get("blocked", [])
        if not isinstance(blocked, list) or not all(isinstance(each, str) for each in blocked):
            raise Err("blocked: not a list of texts")
        for name in blocked:
            if name in names:
                raise Err(f"blocked: {json.dumps(name)} is in names too")

    def settings_schema(self):
        return None


class TunnelRouter(exports.TunnelRouter):
    def route(self):
        name = connection.server_name()
        if name is None:
            return tunnel_router.Answer_Pass() if nameless is None else tunnel_router.Answer_Forward(nameless)
        # The name itself, then what it is below of.
        while name:
            if name in blocked:
                return tunnel_router.Answer_Refuse()
            cluster = names.get(name)
            if cluster is not None:
                return tunnel_router.Answer_Forward(cluster)
            name = name.partition(".")[2]
        return tunnel_router.Answer_Pass()
