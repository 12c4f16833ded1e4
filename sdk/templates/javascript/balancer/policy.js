// Keeps a user at an endpoint; everybody else goes where least is in flight.

import { availables, inFlights } from "tidegate:policy/endpoints@0.1.0";
import { header } from "tidegate:policy/request@0.1.0";

/// The field that names the user.
let field = "x-user";

export const plugin = {
  // An error is thrown as the text that the gateway shows.
  configure(given) {
    const settings = JSON.parse(given);
    for (const key of Object.keys(settings)) {
      if (key !== "header") throw `${key}: no such setting`;
    }
    field = settings.header ?? "x-user";
    if (typeof field !== "string" || !/^[a-z0-9-]+$/.test(field)) {
      throw `header: ${JSON.stringify(field)} is not a lower-case field name`;
    }
  },
  settingsSchema() {
    return undefined;
  },
};

export const balancer = {
  pick() {
    const user = header(field);
    if (user !== undefined) {
      // FNV-1a; the gateway's consistent hash makes an endpoint of it.
      let hash = 0xcbf29ce484222325n;
      for (const byte of user) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
      return { tag: "hash", val: hash };
    }
    const inFlight = inFlights();
    let least;
    for (const index of availables()) {
      if (least === undefined || inFlight[index] < inFlight[least]) least = index;
    }
    return least === undefined ? { tag: "pass" } : { tag: "endpoint", val: least };
  },
};
