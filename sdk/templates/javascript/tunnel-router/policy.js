// Sends each connection where the name in its ClientHello belongs.

import { serverName } from "tidegate:policy/connection@0.1.0";

/// The cluster of each name, and of all names below it.
let names = new Map();
/// Names that go nowhere, with all below them.
let blocked = [];
/// The cluster of connections that name nothing; without it the listener's routes decide.
let nameless;

export const plugin = {
  // An error is thrown as the text that the gateway shows.
  configure(given) {
    const settings = JSON.parse(given);
    for (const key of Object.keys(settings)) {
      if (!["names", "blocked", "nameless"].includes(key)) throw `${key}: no such setting`;
    }
    const table = settings.names;
    if (typeof table !== "object" || table === null || Array.isArray(table)) throw "names: not a table";
    for (const [name, cluster] of Object.entries(table)) {
      if (typeof cluster !== "string" || cluster === "") throw `names.${name}: not a cluster's name`;
    }
    nameless = settings.nameless;
    if (nameless !== undefined && (typeof nameless !== "string" || nameless === "")) {
      throw "nameless: not a cluster's name";
    }
    blocked = settings.blocked ?? [];
    if (!Array.isArray(blocked) || blocked.some((each) => typeof each !== "string")) {
      throw "blocked: not a list of texts";
    }
    for (const name of blocked) {
      if (Object.hasOwn(table, name)) throw `blocked: ${JSON.stringify(name)} is in names too`;
    }
    names = new Map(Object.entries(table));
  },
  settingsSchema() {
    return undefined;
  },
};

export const tunnelRouter = {
  route() {
    const name = serverName();
    if (name === undefined) return nameless === undefined ? { tag: "pass" } : { tag: "forward", val: nameless };
    // The name itself, then what it is below of.
    for (const labels = name.split("."); labels.length > 0; labels.shift()) {
      const rest = labels.join(".");
      if (blocked.includes(rest)) return { tag: "refuse" };
      const cluster = names.get(rest);
      if (cluster !== undefined) return { tag: "forward", val: cluster };
    }
    return { tag: "pass" };
  },
};
