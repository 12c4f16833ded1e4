//! Every key of the file: where it stands, what it takes, its default, what it means. The reader knows no other keys and
//! takes defaults from here; the reference page and the JSON Schema are made of it.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// What a key takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Text,
    Bool,
    Number,
    Time,
    /// A time, or `off`.
    TimeOrOff,
    Size,
    SizeOrOff,
    Share,
    /// One of these words.
    OneOf(&'static [&'static str]),
    TextList,
    /// One text or a list of them.
    TextOrList,
    /// A table of this name of `TABLES`.
    Table(&'static str),
    /// A list of such tables.
    Tables(&'static str),
    /// Any table: it belongs to someone else.
    Free,
    /// A list of texts or tables of this name.
    TextsOrTables(&'static str),
}

pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// `None`: required, or absent by default where `doc` says what that means.
    pub(crate) default: Option<&'static str>,
    pub(crate) required: bool,
    doc: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Some(default), required: false, doc }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: None, required: true, doc }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, default: None, required: false, doc }
}

pub(crate) struct Table {
    pub(crate) name: &'static str,
    doc: &'static str,
    pub(crate) keys: &'static [Key],
}

use Kind::*;

pub(crate) const TABLES: &[Table] = &[
    Table {
        name: "root",
        doc: "The tables of the file.",
        keys: &[
            optional("gateway", Table("gateway"), "What concerns the process."),
            optional("listener", Tables("listener"), "Where clients connect; one at least, unless there is a steer."),
            optional("cluster", Tables("cluster"), "Where requests can go."),
            optional("steer", Tables("steer"), "Packets that the kernel sends on, by NAT or direct server return."),
            optional("plugin", Tables("plugin"), "WebAssembly components that answer questions."),
            optional("registry", Table("registry"), "Where plugins with a source `oci://` come from."),
            optional(
                "tenant",
                Tables("tenant"),
                "Those whose routes, clusters and plugins are apart from one another's.",
            ),
            optional(
                "route",
                Tables("route"),
                "Which requests go where; one at least, unless every listener is a tunnel without `tls`.",
            ),
        ],
    },
    Table {
        name: "gateway",
        doc: "What concerns the process. Of these only `via`, `tls_files_check`, `plugin_store` and `plugin_store_limit` follow a reload; a change to any other needs a restart, and is warned about.",
        keys: &[
            optional(
                "workers",
                Number,
                "Threads that serve, each with its own sockets and pools. Default: one per core, 255 at most.",
            ),
            key("drain_timeout", Time, "30s", "After SIGTERM, work in flight may take this long to finish."),
            key(
                "admin",
                Text,
                "127.0.0.1:9901",
                "Address of the admin listener (metrics, health, status, reload); `off` for none.",
            ),
            key("via", Text, "tidegate", "This gateway's pseudonym in `Via` and `Proxy-Status`."),
            key("access_log", Text, "off", "`stdout`, `off`, or a file: a JSON object per exchange."),
            key("log", Text, "info", "Filter of the program's own log, on stderr; `TIDEGATE_LOG` overrides it."),
            optional(
                "plugin_cache",
                Text,
                "Folder for compiled plugins, `off` for none. Default: `tidegate` in the user's cache folder.",
            ),
            optional(
                "plugin_store",
                Text,
                "Folder for plugins from registries, and for what is known of the versions that served. Several processes may share it. Default: `tidegate/plugins` in the user's folder for state.",
            ),
            key(
                "plugin_store_limit",
                Size,
                "1GiB",
                "Disk that it may take. The versions that served last stay, whatever they take.",
            ),
            key(
                "tls_files_check",
                TimeOrOff,
                "10s",
                "How often the files of certificates, keys and roots are looked at: those that changed are taken as with a reload, without the rest of the configuration. What does not fit together is refused, and the old stays.",
            ),
            key(
                "buffer_memory",
                Size,
                "256MiB",
                "Memory for buffered bodies, over all listeners. When it is taken, bodies are spooled or stream.",
            ),
            optional(
                "spool_directory",
                Text,
                "Where routes with `buffer.spool` keep what memory does not take, in files without a name. Default: the system's folder for temporary files.",
            ),
            key("spool_limit", Size, "4GiB", "Disk that all spooled bodies may take."),
            key("max_plugin_instances", Number, "1000", "Live plugin instances over all workers and plugins."),
            key(
                "max_component_instances",
                Number,
                "1000",
                "Requests at once that components of clusters answer, over all workers and clusters.",
            ),
        ],
    },
    Table {
        name: "listener",
        doc: "Where clients connect.",
        keys: &[
            required("name", Text, "Its name in logs and metrics: letters, digits, `_`, `.` and `-`."),
            required("address", Text, "Address and port; `[::]` serves IPv4 too, port 0 takes a free one."),
            optional(
                "protocols",
                TextList,
                "Of `http1`, `http2`, `http3`. Default: all three with `tls` (not `http3` where a PROXY header is required), the first two without; HTTP/2 without TLS is by prior knowledge. Of `tcp` and `udp` where there is a `tunnel` and no `tls`, by default `tcp`.",
            ),
            key("trusted_proxies", TextList, "[]", "Networks whose forwarding fields are believed."),
            key("proxy_protocol", Table("proxy_protocol"), "{}", "Take PROXY headers from proxies in front."),
            key(
                "trusted_family",
                OneOf(&["auto", "forwarded", "x_forwarded"]),
                "auto",
                "Which fields the trusted proxies maintain. `auto` takes the family that is there; where both are and name different clients, neither is believed.",
            ),
            key("max_connections", Number, "10000", "Open connections, over all workers; more are closed at once."),
            key(
                "max_header_bytes",
                Size,
                "64KiB",
                "A request's head, or its decoded field section: 431 beyond it, 414 for the request line.",
            ),
            key("max_headers", Number, "100", "Fields of a request: 431 beyond it."),
            key("max_streams", Number, "128", "Concurrent streams of an HTTP/2 or HTTP/3 connection."),
            key("header_timeout", Time, "10s", "A whole request head must come within this."),
            key("idle_timeout", Time, "75s", "A connection without a request is closed after this."),
            key(
                "body_idle_timeout",
                Time,
                "60s",
                "Longest silence within a request body, or of a client that takes nothing.",
            ),
            key(
                "min_upload_rate",
                SizeOrOff,
                "off",
                "Bytes a second that a request body must come with, on its average while the gateway waits for it: 408 below it. No rule for tunnels.",
            ),
            key(
                "min_download_rate",
                SizeOrOff,
                "off",
                "The same of a client that takes a response: the connection or stream is ended.",
            ),
            key("rate_grace", Time, "10s", "How long a client may be waited for before its rates count."),
            key(
                "buffer_memory",
                SizeOrOff,
                "off",
                "Memory for buffered bodies of this listener's clients, within the gateway's.",
            ),
            key("handshake_timeout", Time, "10s", "A TLS or QUIC handshake must be done within this."),
            key("max_requests_per_connection", Number, "100000", "Then the connection is closed in an orderly way."),
            key("alt_svc", Bool, "true", "Announce HTTP/3 to clients on TCP where it is served (RFC 7838)."),
            optional("tls", Table("listener.tls"), "Speak TLS."),
            optional(
                "tunnel",
                Table("tunnel"),
                "Relay connections as they are, nothing in them decrypted. With `tls` those that a route or the router names; the others are ended here.",
            ),
        ],
    },
    Table {
        name: "tunnel",
        doc: "Relays TCP, TLS that others end, and UDP. What a client says first is read only where `routes` or a `router` need it: a TLS ClientHello, over QUIC that of the first Initial packets. Every byte is passed on unchanged. `max_connections` and `proxy_protocol` of the listener hold here too; of the cluster, everything that concerns endpoints and connections.",
        keys: &[
            optional("routes", Tables("tunnel_route"), "By the ClientHello; the first that matches is taken."),
            optional(
                "cluster",
                Text,
                "Where goes what no route names, whether it is TLS or not. Default: it is ended here where the listener has `tls`, else closed.",
            ),
            optional(
                "router",
                Text,
                "A plugin that answers the question `tunnel-router`, asked first. What it passes, and by default what it gives no answer for, goes by the routes.",
            ),
            key(
                "hello_timeout",
                Time,
                "5s",
                "A whole ClientHello must come within this, where one is waited for; its most is 64 KiB, over QUIC 24 KiB.",
            ),
            key(
                "connect_attempts",
                Number,
                "3",
                "Endpoints that are tried, one after the other, until one takes the connection; over UDP, while the last is known to be closed and has said nothing.",
            ),
            key("idle_timeout", TimeOrOff, "10m", "Longest time without a byte in either direction."),
            key(
                "udp_idle_timeout",
                Time,
                "30s",
                "Longest time without a datagram in either direction of a session: one address of a client, over QUIC one connection.",
            ),
            key("max_lifetime", TimeOrOff, "off", "Longest life of a tunnel, however busy it is."),
        ],
    },
    Table {
        name: "tunnel_route",
        doc: "Which connections go where. All that is given must match.",
        keys: &[
            optional(
                "server_name",
                TextOrList,
                "Names in the ClientHello (RFC 6066); `*.example.com` takes every name below. Of a hello with ECH it is the outer name (RFC 9849).",
            ),
            optional("alpn", TextOrList, "Protocols, one of which the client offers (RFC 7301)."),
            required("cluster", Text, "Where they go."),
        ],
    },
    Table {
        name: "proxy_protocol",
        doc: "From whom a listener takes a PROXY header, version 1 or 2, before TLS and HTTP. Its source becomes the connection's client, its destination the local address; its fields are `connection.proxy-tlv` for plugins.",
        keys: &[
            key(
                "accept",
                OneOf(&["off", "optional", "required"]),
                "off",
                "`off`: never. `optional`: `trusted` peers may send one, and a header from others is bytes like any others. `required`: a connection without a valid header, or from another peer, is closed.",
            ),
            key("trusted", TextList, "[]", "Networks of the proxies that send one."),
            key("timeout", Time, "3s", "The whole header must come within this."),
        ],
    },
    Table {
        name: "listener.tls",
        doc: "The listener's side of TLS.",
        keys: &[
            required(
                "certificates",
                Tables("certificate"),
                "Chosen by SNI from the names in them; the first is the default.",
            ),
            key("min_version", OneOf(&["1.2", "1.3"]), "1.2", "The oldest version of TLS."),
            key(
                "early_data",
                Bool,
                "false",
                "Take requests in QUIC's 0-RTT from clients that come back (RFC 8470). Safe methods without content go on at once, with `Early-Data: 1`, and again without it where the upstream answers 425; all else waits for the handshake. A ticket opens early data once, whichever worker it comes to. Needs `http3`; not with `client_ca`. Over TCP none is taken.",
            ),
            optional(
                "client_ca",
                Text,
                "File of roots that client certificates are verified against, where a name has none of its own. Default: none are asked for.",
            ),
            key(
                "client_auth",
                OneOf(&["required", "optional"]),
                "required",
                "Whether a client must have a certificate, where `client_ca` is set.",
            ),
        ],
    },
    Table {
        name: "certificate",
        doc: "A certificate and its key.",
        keys: &[
            required("certificate", Text, "PEM file of the chain, the server's own first."),
            required("key", Text, "PEM file of the private key."),
            key("names", TextList, "[]", "Names it serves, of those in it. Default: all of them."),
            optional(
                "client_ca",
                Text,
                "File of roots that the client certificates of these names are verified against. Default: the listener's.",
            ),
            optional(
                "client_auth",
                OneOf(&["required", "optional", "off"]),
                "Whether a client of these names must have a certificate. Default: the listener's.",
            ),
        ],
    },
    Table {
        name: "cluster",
        doc: "Endpoints that can stand in for one another.",
        keys: &[
            required("name", Text, "What routes and plugins call it: letters, digits, `_`, `.` and `-`."),
            optional(
                "tenant",
                Text,
                "The tenant whose it is: only that tenant's routes and routers may name it, and what its component uses is of the tenant's budget.",
            ),
            key(
                "shared",
                Bool,
                "false",
                "Every tenant's routes and routers may name it; what its component uses is of its own limits. Not together with `tenant`.",
            ),
            optional(
                "endpoints",
                TextsOrTables("endpoint"),
                "Address and port of each, or tables. Needed, unless there is a `component`.",
            ),
            optional(
                "component",
                Text,
                "File of a component of the world `wasi:http/proxy` 0.2, which answers the requests here, each in an instance of its own, in place of endpoints. It has clocks, random numbers and standard streams, which go to the log; no files, no sockets, and outgoing requests are denied.",
            ),
            key("limits", Table("cluster.limits"), "{}", "What a component may take."),
            optional("env", Free, "A component's environment: texts by name. Default: empty."),
            key(
                "protocol",
                OneOf(&["auto", "http1", "http2", "http3"]),
                "auto",
                "`auto` takes what ALPN agrees on over TLS, else HTTP/1.1. `http3` is over QUIC and needs `tls`.",
            ),
            key("balance", Table("balance"), "{}", "Which endpoint takes a request."),
            key("connect_timeout", Time, "5s", "TCP, TLS and HTTP/2 preface together, or QUIC's handshake."),
            key("idle_timeout", Time, "60s", "An unused connection is closed after this."),
            key("max_connection_age", Time, "10m", "Then a connection takes no more requests."),
            key("max_requests_per_connection", Number, "10000", "Likewise."),
            key("max_connections", Number, "1024", "Per endpoint and worker; more requests wait."),
            key(
                "max_streams_per_connection",
                Number,
                "100",
                "Requests that share an HTTP/2 connection before another is opened.",
            ),
            key(
                "max_pending",
                Number,
                "1024",
                "Requests that may wait for a connection, per endpoint and worker: 503 beyond it.",
            ),
            key("pending_timeout", Time, "5s", "How long they wait."),
            key(
                "max_requests",
                Number,
                "100000",
                "In flight per endpoint, over all workers; a full one is passed over.",
            ),
            key(
                "proxy_protocol",
                OneOf(&["off", "v1", "v2"]),
                "off",
                "Begin each connection with a PROXY header for the client's one. A connection then serves that client only: others never share it.",
            ),
            key(
                "proxy_tlvs",
                TextList,
                "[\"alpn\", \"authority\", \"ssl\", \"crc32c\"]",
                "Fields of a `v2` header, also `unique_id`. The first three tell of the client's TLS here, else what a PROXY header from it said.",
            ),
            key("retry_budget", Table("retry_budget"), "{}", "How many retries the cluster bears."),
            optional("tls", Table("cluster.tls"), "Speak TLS to the endpoints. Verified unless told otherwise."),
            optional(
                "health",
                Table("cluster.health"),
                "Ask the endpoints whether they are well. Default: nobody asks.",
            ),
            optional(
                "ejection",
                Table("cluster.ejection"),
                "Leave endpoints out for a while whose answers are bad. Default: none is; `{}` for the defaults below.",
            ),
            key(
                "panic_threshold",
                Share,
                "50%",
                "When a smaller share of the endpoints is healthy, all are used: better some errors than the rest crowded. Those that await their first check count neither way. `0%` for never.",
            ),
            key(
                "slow_start",
                TimeOrOff,
                "off",
                "An endpoint that joins or comes back gets a tenth of its share, and the whole after this time. Not with `maglev`.",
            ),
            key("circuit_breaker", Table("circuit_breaker"), "{}", "How much the cluster may have in flight."),
        ],
    },
    Table {
        name: "cluster.health",
        doc: "Active checks of every endpoint, each on a connection of its own, over TLS where the cluster has it.",
        keys: &[
            key(
                "kind",
                OneOf(&["http", "tcp", "grpc"]),
                "http",
                "A request in the cluster's protocol, a connection, or `grpc.health.v1.Health/Check`.",
            ),
            optional("port", Number, "Where it is asked, in place of the endpoint's port."),
            key("interval", Time, "5s", "From the start of a check to that of the next. The first is made at once."),
            key("timeout", Time, "2s", "A check that takes longer has failed."),
            key("jitter", Share, "10%", "The interval is longer by up to this share of it, at random."),
            key("healthy_threshold", Number, "2", "Good checks in a row until a failing endpoint is back."),
            key("unhealthy_threshold", Number, "3", "Bad checks in a row until an endpoint is out."),
            key(
                "initial",
                OneOf(&["unhealthy", "healthy"]),
                "unhealthy",
                "What a new endpoint is taken for until its first check, which then decides alone; a `healthy` one goes by the thresholds.",
            ),
            key("path", Text, "/", "For `http`, what is asked for."),
            key("method", OneOf(&["GET", "HEAD"]), "GET", "For `http`."),
            key("expect", TextList, "[\"200-299\"]", "For `http`, good statuses and ranges of them."),
            optional(
                "host",
                Text,
                "For `http` and `grpc`, the authority. Default: `tls.server_name`, else the endpoint's address.",
            ),
            key("service", Text, "", "For `grpc`, the service that is asked after; empty for the server as a whole."),
            key("send", Text, "", "For `tcp`, what is sent once the connection is there."),
            key(
                "receive",
                Text,
                "",
                "For `tcp`, what must come within the first 4 KiB. Empty: a connection is enough.",
            ),
        ],
    },
    Table {
        name: "cluster.ejection",
        doc: "An endpoint whose answers are bad is left out for a while. A count or share of zero turns its rule off.",
        keys: &[
            key("consecutive_5xx", Number, "5", "Answers 5xx in a row."),
            key("consecutive_gateway", Number, "0", "Answers 502, 503 or 504 in a row."),
            key(
                "consecutive_local",
                Number,
                "5",
                "Attempts in a row that got no answer: no connection, a reset, a timeout.",
            ),
            key("interval", Time, "10s", "How often the endpoints are compared with one another."),
            key("base_time", Time, "30s", "How long the first ejection lasts; the second twice as long, and so on."),
            key("max_time", Time, "5m", "The longest ejection."),
            key("max_ejected", Share, "50%", "Most endpoints that may be out at once; one always may."),
            key(
                "success_rate_factor",
                Text,
                "1.9",
                "Out goes who is so many standard deviations below the mean success rate; `0` for off.",
            ),
            key("failure_share", Share, "0%", "Out goes who fails this share of its requests; `0%` for off."),
            key("min_endpoints", Number, "5", "So many endpoints must be busy enough before they are compared."),
            key("min_requests", Number, "100", "So many requests within an interval are busy enough."),
        ],
    },
    Table {
        name: "cluster.limits",
        doc: "What a component may take. A request beyond it ends as if an origin had broken off, and no other notices.",
        keys: &[
            key("cpu_time", Time, "100ms", "Of one request; waiting does not count."),
            key(
                "cpu",
                TimeOrOff,
                "off",
                "CPU time of all its requests in each second, over all workers. Beyond it a new request is answered 503, with the cause `budget`, and one that is being answered waits, within `timeout`, until there is some again.",
            ),
            optional("cpu_burst", Time, "What it may save up of that. Default: as much as `cpu`."),
            key("timeout", TimeOrOff, "60s", "From the begin of a request until the component is done with it."),
            key("memory", Size, "64MiB", "Linear memory of one request."),
            key(
                "instances",
                Number,
                "256",
                "Requests at once, over all workers. More wait for `pending_timeout`: 503 then.",
            ),
            key("log_lines", Number, "100", "Lines it may write in each second; more are dropped and counted."),
        ],
    },
    Table {
        name: "circuit_breaker",
        doc: "Bounds over all endpoints and workers: 503 beyond them. Connections, waiting requests and the requests of one endpoint are bounded by the cluster's own keys.",
        keys: &[
            optional(
                "max_requests",
                Number,
                "Requests in flight. Default: no bound but `max_requests` of each endpoint.",
            ),
            key(
                "max_retries",
                Number,
                "1000",
                "Exchanges at once that are beyond their first try; more are not tried again.",
            ),
        ],
    },
    Table {
        name: "endpoint",
        doc: "One endpoint of a cluster.",
        keys: &[
            required("address", Text, "IP address and port."),
            key("weight", Number, "1", "Its share of the requests, to 1,000,000; 0 takes it out."),
            optional("zone", Text, "Where it is, for balancers."),
            optional("labels", Free, "Texts by name, for balancers; `mac` for a steer with `mode = \"dsr\"`."),
        ],
    },
    Table {
        name: "steer",
        doc: "Packets for a virtual address that the kernel sends on to a cluster, on Linux, through nftables: this process sees none of them. It needs the program `nft` and CAP_NET_ADMIN, and owns the table `tidegate_NAME`, which goes when the program stops; after a crash it steers on until a gateway starts here again. Health checks of the cluster add and remove endpoints; an endpoint of weight 0, or one that leaves the configuration and is not checked any more, keeps the flows it has; one that is unhealthy loses them to others. Keys of the cluster about requests are errors.",
        keys: &[
            required("name", Text, "Of the table in the kernel, logs and metrics: letters, digits, `_`, `.` and `-`."),
            required("address", Text, "The virtual address, which this host has or which is routed to it."),
            required("ports", TextOrList, "`443`, or ranges as in `8000-8010`."),
            key("protocols", TextList, "[\"tcp\"]", "Of `tcp` and `udp`."),
            required("cluster", Text, "Where to. Its endpoints are of the address's IP version."),
            required(
                "mode",
                OneOf(&["nat", "dsr"]),
                "`nat`: the destination is rewritten, and both ways lead through this host, which must forward (`net.ipv4.ip_forward`). One port becomes the endpoint's; several stay as they are. `dsr`: only the frame's MAC address is rewritten; the endpoint, on the same Ethernet, has the virtual address too and answers the client itself. Ports stay, and fragments of datagrams beyond the first are lost.",
            ),
            optional("interface", Text, "Where packets come in. Required for `dsr`; for `nat` the default is any."),
            optional("endpoint_interface", Text, "For `dsr`, where the endpoints are. Default: `interface`."),
            key(
                "source",
                OneOf(&["keep", "gateway"]),
                "keep",
                "For `nat`, whose address the endpoint sees: the client's, and then its way back must lead through this host; or this host's.",
            ),
            key(
                "affinity",
                OneOf(&["connection", "client"]),
                "connection",
                "What is hashed: the client's address and port, or its address alone, so that all its flows go to one endpoint.",
            ),
            key("table", Number, "4099", "Entries of Maglev's table: a prime, a hundred times the endpoints."),
            key(
                "flows",
                Number,
                "65536",
                "For `dsr`, flows that are remembered for each endpoint. More go by the table alone, and may move when it changes.",
            ),
            key(
                "flow_timeout",
                Time,
                "5m",
                "For `dsr`, how long a silent flow is remembered. After a single packet it is 30s at most.",
            ),
            key(
                "check",
                OneOf(&["virtual_address", "endpoint_address"]),
                "virtual_address",
                "For `dsr`, where health checks of the cluster go. To the virtual address at the endpoint, as clients' packets do: an endpoint that lacks the address, or a service on it, is found out; Linux 5.16 or later is needed. Or to the endpoint's own. Either way the port is the check's or the endpoint's.",
            ),
            optional(
                "check_mark",
                Number,
                "For `dsr`, the mark (`SO_MARK`) by which the kernel knows checks of the virtual address. Default: one made from the name, 0x7d000000 or more. Change it where policy routing or a firewall gives it another meaning.",
            ),
        ],
    },
    Table {
        name: "balance",
        doc: "How an endpoint is picked.",
        keys: &[
            key(
                "by",
                OneOf(&["round_robin", "least_request", "peak_ewma", "maglev"]),
                "round_robin",
                "The cluster's own algorithm.",
            ),
            key(
                "on",
                Text,
                "client_ip",
                "For `maglev`, what is hashed: `client_ip`, `path`, `header:NAME` or `cookie:NAME`.",
            ),
            key(
                "table",
                Number,
                "65537",
                "For `maglev` and plugins that hash, the size of the table: a prime, a hundred times the endpoints.",
            ),
            optional("plugin", Text, "A plugin that is asked first."),
        ],
    },
    Table {
        name: "retry_budget",
        doc: "A bound on retries, so that they cannot finish a slow cluster off.",
        keys: &[
            key("percent", Share, "20%", "Of the requests may be retries."),
            key("min", Number, "10", "Retries a second that are allowed besides."),
        ],
    },
    Table {
        name: "cluster.tls",
        doc: "The cluster's side of TLS.",
        keys: &[
            optional("server_name", Text, "Sent as SNI and verified. Default: the endpoint's IP address is verified."),
            optional("ca", Text, "File of roots. Default: the system's."),
            optional("certificate", Text, "PEM file of a client certificate; with `key`."),
            optional("key", Text, "PEM file of its key."),
            key("verify", Bool, "true", "`false` takes any certificate, and is warned about."),
        ],
    },
    Table {
        name: "plugin",
        doc: "A component that answers questions.",
        keys: &[
            required("name", Text, "What routes and clusters call it: letters, digits, `_`, `.` and `-`."),
            required(
                "source",
                Text,
                "A file; `builtin:` and one of `tenant-canary`, `latency-aware`, `private-forwarding`, `careful-retry`; or an artifact in a registry, `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]`, with the keys from `signed_by` on. These are for its `rollout` and `shadow` too.",
            ),
            optional(
                "tenant",
                Text,
                "The tenant whose it is: only that tenant's tables may name it, and what it uses is of the tenant's budget.",
            ),
            key(
                "shared",
                Bool,
                "false",
                "Every tenant's tables may name it; what it uses is of its own limits. Not together with `tenant`.",
            ),
            key("settings", Free, "{}", "The plugin's own table, checked against its schema."),
            key(
                "on_failure",
                OneOf(&["fallback", "deny"]),
                "fallback",
                "When it gives no answer, or one that cannot be used: the native one, or 503. As a retry policy that denies: no further try, and the failure stands.",
            ),
            key(
                "isolation",
                OneOf(&["worker", "request"]),
                "worker",
                "An instance per worker, or fresh memory for every question.",
            ),
            key(
                "memoise",
                Bool,
                "false",
                "It is a pure function of what it reads: answers may be remembered. Not together with `grants.wasi`.",
            ),
            key("limits", Table("limits"), "{}", "What a decision may take."),
            key("grants", Table("grants"), "{}", "What it may see and do."),
            optional(
                "signed_by",
                TextList,
                "PEM files of public keys (ECDSA over P-256): the artifact must be signed with one of them, as `tidegate plugin sign` and cosign do it. Default: the registry's.",
            ),
            key("signatures", OneOf(&["any", "all"]), "any", "Whether one of those keys is enough."),
            optional(
                "signed_as",
                Text,
                "`HOST/REPOSITORY` that signatures are for, where it is a copy. Default: where it comes from.",
            ),
            key(
                "pull",
                OneOf(&["always", "if_absent"]),
                "always",
                "At a start and at a reload: ask the registry what a tag means now, or only where no version has served yet. A digest that has served is never asked for.",
            ),
            key(
                "refresh",
                TimeOrOff,
                "off",
                "How often a tag is looked up while the gateway runs. What it means now is compiled, configured and swapped in as by a reload, without the rest of the configuration.",
            ),
            key(
                "on_fetch_failure",
                OneOf(&["last_good", "refuse"]),
                "last_good",
                "When it cannot be had, is damaged, unsigned or revoked: go on with the version that served last, or refuse the start or reload. Where no version served, it is refused. A version of `rollout` or `shadow` is left out in place of a refusal.",
            ),
            key(
                "on_compile_failure",
                OneOf(&["last_good", "refuse"]),
                "last_good",
                "The same when it is no component of this gateway's contract.",
            ),
            key(
                "on_configure_failure",
                OneOf(&["last_good", "refuse"]),
                "last_good",
                "The same when it refuses its settings, or fails as it starts.",
            ),
            optional(
                "rollout",
                Table("rollout"),
                "A next version for part of the exchanges, which goes back by itself when it does worse. Default: none.",
            ),
            optional(
                "shadow",
                Table("shadow"),
                "Another version that is asked too and whose answers are compared, not used; `tidegate shadow` shows how they differ. Default: none.",
            ),
        ],
    },
    Table {
        name: "registry",
        doc: "How registries are spoken to, and what is taken from them. Names and passwords are those of `docker login` and `podman login`, helpers included.",
        keys: &[
            key(
                "plain_http",
                TextList,
                "[\"loopback\"]",
                "Registries that are spoken to without TLS: `HOST`, `HOST:PORT`, or `loopback` for `localhost` and its addresses.",
            ),
            optional("ca", Text, "File of roots. Default: the system's."),
            key(
                "credentials",
                Text,
                "auto",
                "A file in the form of Docker's `config.json`, or `off`. `auto`: `REGISTRY_AUTH_FILE`, else `containers/auth.json` in `XDG_RUNTIME_DIR`, then `config.json` in `DOCKER_CONFIG` or `~/.docker`.",
            ),
            key(
                "signed_by",
                TextList,
                "[]",
                "PEM files of public keys, for plugins that name none. Default: none are asked for.",
            ),
            optional(
                "revoked",
                Text,
                "File of digests, of manifests or components, that are refused, kept ones too: one a line, or `revoked = [..]` in a `.toml`. It is looked at every ten seconds; a version that serves and is revoked is asked no more, and `on_failure` says what becomes of its questions until another serves.",
            ),
            key("timeout", Time, "30s", "All that a start, a reload or a refresh fetches must be here within this."),
            key("max_component", Size, "64MiB", "A larger one is refused."),
        ],
    },
    Table {
        name: "rollout",
        doc: "A next version of a plugin, with its limits, grants and the rest, named `NAME@next` in logs and metrics. It is compiled, configured and asked once of a plain request before anything changes. Where it gives no answer, the current version is asked after it. All questions of one exchange go to one version. One from a registry is held to the plugin's own `signed_by`, `refresh` and the other keys of that kind, and never keeps the plugin from serving: where none can be had that will do, the current version answers alone, and the status says why. A tag that means another version begins the rollout anew.",
        keys: &[
            required(
                "source",
                Text,
                "A file, `builtin:` and a name, or `oci://` and a reference, for which the plugin's keys from `signed_by` on hold too.",
            ),
            optional("settings", Free, "Its own table. Default: the plugin's."),
            required(
                "share",
                Share,
                "Of the exchanges, up to `100%`. A larger one only adds subjects: nobody goes back.",
            ),
            key(
                "sticky_by",
                Text,
                "client_ip",
                "What is hashed to tell who has which version: `client_ip`, so that a page and its parts agree, `header:NAME` or `cookie:NAME` (where absent, the address), or `random` for each exchange by chance.",
            ),
            key(
                "kv",
                OneOf(&["shared", "own"]),
                "shared",
                "With `grants.kv`, whose keys the next version has. `shared`: the plugin's, so that counters count what both decide, and go on when it takes over; it must leave what the current version reads as that understands it. `own`: its own, empty at first, as many bytes again, and forgotten when it takes over: for a version that writes another format.",
            ),
            key("guard", Table("guard"), "{}", "When it is rolled back."),
        ],
    },
    Table {
        name: "guard",
        doc: "When a rollout is ended, at once and by each process for itself. The next version then has no share until a configuration changes the rollout: its source, settings, share or guard.",
        keys: &[
            key("faults", Number, "5", "Traps, deadlines, memory and answers that cannot be used, within the window."),
            key(
                "error_rate",
                Share,
                "5%",
                "How much larger its share of failed exchanges (5xx, or no answer) may be than the current version's. It does not wait for `min` exchanges where too many have failed already.",
            ),
            key(
                "latency",
                Share,
                "200%",
                "How long its decisions may take, of the current version's: the time that three of four take at most, memoised answers apart, and only where the difference is more than 100us.",
            ),
            key("window", Time, "30s", "What is counted is forgotten after this."),
            key(
                "min",
                Number,
                "50",
                "Exchanges of the next version, or answers of each, within the window before shares and times are compared: fewer would be chance.",
            ),
        ],
    },
    Table {
        name: "shadow",
        doc: "A version that is asked beside a plugin, with its limits, grants and the rest, named `NAME@shadow` in logs and metrics. It is asked after the answer that stands, costs a request the time of its own decision, may run for 50ms a second over all workers, and is left alone in quarantine. Not memoised: what it reads is shown. With `grants.kv` its keys are its own, empty at first, in memory only: what it writes nobody reads. One from a registry is held to the plugin's keys, as a rollout's is, and left out where none will do.",
        keys: &[
            required(
                "source",
                Text,
                "A file, `builtin:` and a name, or `oci://` and a reference, for which the plugin's keys from `signed_by` on hold too.",
            ),
            optional("settings", Free, "Its own table. Default: the plugin's."),
            key("share", Share, "100%", "Of the exchanges, by chance."),
            key("rate", Number, "1000", "Most questions a second, over all workers."),
        ],
    },
    Table {
        name: "limits",
        doc: "What a plugin's decision may take.",
        keys: &[
            key(
                "time",
                Time,
                "5ms",
                "Then it is stopped, and its instance replaced. That may be noticed half as long later, 10ms at most.",
            ),
            key("memory", Size, "16MiB", "Linear memory of an instance."),
            key(
                "cpu",
                TimeOrOff,
                "off",
                "CPU time of its decisions in each second, over all workers. Beyond it a decision falls to `on_failure`, with the cause `budget`.",
            ),
            optional("cpu_burst", Time, "What it may save up of that. Default: as much as `cpu`."),
            optional(
                "instances",
                Number,
                "Live instances, over all workers: one at each worker for `isolation = \"worker\"`. Default: no bound of its own.",
            ),
            key("log_lines", Number, "100", "Lines it may write in each second; more are dropped and counted."),
            key(
                "wait",
                Time,
                "1s",
                "What a decision may wait for all its calls by `http-client` together. That is no part of `time`.",
            ),
            optional(
                "callouts",
                Number,
                "Calls by `http-client` that it may make in each second, over all workers. Default: no bound of its own.",
            ),
        ],
    },
    Table {
        name: "grants",
        doc: "What a plugin may see and do.",
        keys: &[
            key("headers", TextList, "[\"*\"]", "Names of the fields it may read and edit; others read as absent."),
            key(
                "wasi",
                Bool,
                "false",
                "Link WASI 0.2: clocks, random numbers, an empty environment, standard streams that go nowhere; no files, no network, and nothing that waits.",
            ),
            key(
                "kv",
                SizeOrOff,
                "off",
                "Bytes it may keep under keys, over all workers (the import `kv`), overhead included. When they are taken, what was not used for longest goes.",
            ),
            key(
                "kv_scope",
                OneOf(&["plugin", "tenant"]),
                "plugin",
                "Whose keys they are: its own, or those of all plugins of its tenant that say `tenant`.",
            ),
            optional(
                "kv_persist",
                Text,
                "A database file that keeps them over restarts; written about five times a second, so that the last moment may be lost with the process. Default: memory only.",
            ),
            optional(
                "http",
                Table("grants.http"),
                "Clusters it may call before it answers (the import `http-client`). Default: none.",
            ),
        ],
    },
    Table {
        name: "grants.http",
        doc: "What a plugin may call. The cluster's own algorithm picks the endpoint; health, TLS and bounds are the cluster's. Its worker serves others meanwhile.",
        keys: &[
            required(
                "clusters",
                TextOrList,
                "Their names; of a tenant's plugin, its own clusters and those with `shared = true`.",
            ),
            key("max_request", Size, "64KiB", "The longest body of a request."),
            key("max_response", Size, "64KiB", "The longest body of a response."),
            key(
                "max_in_flight",
                Number,
                "100",
                "Calls under way, over all workers. Each has an instance of the plugin to itself until it is answered.",
            ),
        ],
    },
    Table {
        name: "tenant",
        doc: "Somebody whose tables are apart from those of others: routes, clusters and plugins name their tenant with `tenant`. A tenant's routes match its own hosts only; they, and its routers, name its own clusters and plugins or those with `shared = true`.",
        keys: &[
            required("name", Text, "What the other tables call it: letters, digits, `_`, `.` and `-`."),
            required(
                "hosts",
                TextOrList,
                "`shop.example.com` or `*.shop.example.com`: hosts that are its own, and nobody else's.",
            ),
            key("limits", Table("tenant.limits"), "{}", "What it may use."),
            key("grants", Table("tenant.grants"), "{}", "What its plugins may be granted."),
        ],
    },
    Table {
        name: "tenant.limits",
        doc: "What a tenant may use, all its plugins, its clusters' components and all workers together. Who is over it is shed alone: its decisions fall to `on_failure`, and new requests of its components are answered 503, with the cause `budget`.",
        keys: &[
            key(
                "cpu",
                TimeOrOff,
                "off",
                "CPU time of its plugins' decisions and its components' requests in each second. A request that a component is at work on waits until there is some again.",
            ),
            optional("cpu_burst", Time, "What it may save up of that. Default: as much as `cpu`."),
            key("memory", SizeOrOff, "off", "Linear memory of its live instances."),
            optional(
                "instances",
                Number,
                "Live instances, one for each request of a component. A new one takes the place of that of its plugins which was not asked for longest on this worker. Default: no bound.",
            ),
            optional(
                "log_lines",
                Number,
                "Lines its plugins and components may write in each second. Default: as many as each may.",
            ),
            key(
                "kv",
                SizeOrOff,
                "off",
                "Bytes of `kv` that its plugins may be granted together, versions with keys of their own included.",
            ),
            optional(
                "callouts",
                Number,
                "Calls by `http-client` that its plugins may make in each second. Default: as many as each may.",
            ),
            optional(
                "callouts_in_flight",
                Number,
                "The same, under way at once, each with an instance to itself. Default: as many as each may.",
            ),
            optional(
                "requests",
                Number,
                "Requests in flight on its routes: 429 beyond it, with `Retry-After`. Default: no bound.",
            ),
        ],
    },
    Table {
        name: "tenant.grants",
        doc: "What a tenant's plugins may be granted.",
        keys: &[
            key("headers", TextList, "[\"*\"]", "Names of fields. A plugin without `grants.headers` has all of these."),
            key("wasi", Bool, "false", "Whether they may import WASI."),
        ],
    },
    Table {
        name: "route",
        doc: "Which requests go where. An exact host beats a wildcard, that any; then an exact path a longer prefix, that a shorter; then the order of the file.",
        keys: &[
            optional("name", Text, "Its name in logs. Default: `route-` and its place."),
            optional("tenant", Text, "The tenant whose it is; its hosts are of that tenant."),
            optional("host", TextOrList, "`api.example.com` or `*.example.com`. Default: any."),
            optional("path", Text, "`/v1`, or `/v1/*` for it and all below. Compared as received. Default: any."),
            optional("methods", TextList, "Default: any."),
            optional(
                "headers",
                Free,
                "Fields that must have this value; `*` for any value. The host has a key of its own.",
            ),
            optional("cluster", Text, "Where to."),
            optional("split", Tables("share"), "Or to several, by weight."),
            optional("respond", Table("respond"), "Or answered here."),
            optional("router", Text, "A plugin that is asked first; alone, without it there is no way."),
            key("forwarding", Table("forwarding"), "{}", "What the upstream learns of the client."),
            key("retry", Table("retry"), "{}", "When to try again."),
            key("timeout", TimeOrOff, "60s", "From the whole request to the response head, all tries together."),
            key("attempt_timeout", TimeOrOff, "off", "The same for one try."),
            key(
                "idle_timeout",
                TimeOrOff,
                "60s",
                "Longest silence of the upstream within a body, or of both sides of a tunnel.",
            ),
            key("max_request_body", SizeOrOff, "off", "413 beyond it."),
            key(
                "upgrade",
                TextList,
                "[\"websocket\"]",
                "Protocols that clients may change to; `[]` for none. A request for another goes on without it in HTTP/1.1, and is answered 501 in HTTP/2 and HTTP/3.",
            ),
            key(
                "connect",
                TextList,
                "[]",
                "Authorities that `CONNECT` may name, as in `db.example.com:5432` or `*.example.com:443`: the tunnel leads to the route's cluster, whatever the name. 403 for others.",
            ),
            key(
                "connect_udp",
                TextList,
                "[]",
                "Targets that connect-udp (RFC 9298) may name in `/.well-known/masque/udp/HOST/PORT/`, as in `dns.example.com:53`: UDP goes to the route's cluster, whatever the name, which has neither `tls` nor `proxy_protocol`. 403 for others. Such a tunnel may be silent for 2m, or for `idle_timeout` where that is written.",
            ),
            key("buffer", Table("buffer"), "{}", "What is held back."),
            optional(
                "compress",
                Table("compress"),
                "Compress responses for clients that take it. Default: they pass as they are; `{}` for the defaults below.",
            ),
        ],
    },
    Table {
        name: "share",
        doc: "One of several clusters.",
        keys: &[required("cluster", Text, "Its name."), key("weight", Number, "1", "Its share.")],
    },
    Table {
        name: "respond",
        doc: "An answer by the gateway itself.",
        keys: &[
            required("status", Number, "200 to 599."),
            key("body", Text, "", "Its text."),
            optional("headers", Free, "Its fields; not those that frame a message or belong to one connection."),
        ],
    },
    Table {
        name: "forwarding",
        doc: "The fields that tell the upstream of the client. What untrusted clients claim is always removed.",
        keys: &[
            key(
                "families",
                TextList,
                "[\"x_forwarded\", \"forwarded\"]",
                "Of `forwarded` (RFC 7239), `x_forwarded`, `x_real_ip`.",
            ),
            key(
                "mode",
                OneOf(&["append", "replace"]),
                "append",
                "Keep what trusted hops said, or only what this gateway knows.",
            ),
            key(
                "client_certificate",
                OneOf(&["off", "leaf", "chain"]),
                "off",
                "Tell of the client's certificate, which the listener's TLS verified: `Client-Cert`, with `chain` also `Client-Cert-Chain` (RFC 9440).",
            ),
            optional("by", Text, "This gateway in `by`: an obfuscated name (`_edge`) or an address."),
            optional("plugin", Text, "A plugin that is asked."),
        ],
    },
    Table {
        name: "retry",
        doc: "When to try again. Only what is provably safe is: nothing after the response began, nothing that could act twice, no body that is gone.",
        keys: &[
            key(
                "on",
                TextList,
                "[\"connect\", \"refused\", \"reset\"]",
                "Of `connect`, `reset`, `refused`, `timeout`, `gateway` (502 to 504), `5xx`, and statuses.",
            ),
            key("attempts", Number, "2", "Tries in all, 1 to 10."),
            key(
                "hedge_after",
                TimeOrOff,
                "off",
                "A request with a safe method and without content that nobody has answered after this is sent to another endpoint as well, and again after as long: the first answer is taken, the others are cancelled. Hedges count as tries.",
            ),
            key("backoff", Time, "25ms", "The longest first pause; it doubles, and is drawn at random below that."),
            key("max_backoff", Time, "250ms", "The longest pause."),
            optional("plugin", Text, "A plugin that is asked in place of these conditions."),
        ],
    },
    Table {
        name: "compress",
        doc: "Which responses are compressed: never ranges, what is encoded already, what carries a digest or says `no-transform`. Strong entity tags become weak, `Vary` names `accept-encoding`. Nothing an origin has flushed is held back.",
        keys: &[
            key(
                "encodings",
                TextList,
                "[\"zstd\", \"br\", \"gzip\"]",
                "What is offered; of those that a client likes equally, the first is taken.",
            ),
            key(
                "types",
                TextList,
                "[\"text/*\", \"application/javascript\", \"application/json\", \"application/manifest+json\", \"application/problem+json\", \"application/wasm\", \"application/xml\", \"application/xhtml+xml\", \"application/rss+xml\", \"application/atom+xml\", \"image/svg+xml\", \"font/ttf\", \"font/otf\"]",
                "Media types, without parameters; `text/*` for all of a kind.",
            ),
            key("min_size", Size, "1KiB", "Shorter ones pass as they are, where the length is known."),
            key(
                "credentials",
                Bool,
                "true",
                "Also for requests with cookies or authorization. `false` where pages hold secrets beside what a client sends: the secret can be guessed from compressed lengths (BREACH).",
            ),
        ],
    },
    Table {
        name: "buffer",
        doc: "What is held back, so that a slow client does not hold an upstream; by default everything streams. When the memory or disk for all of it is taken, what does not fit streams too.",
        keys: &[
            key(
                "request",
                Size,
                "0",
                "Up to this many bytes of a request are read before an upstream is engaged, and can be sent again. Longer ones stream.",
            ),
            key(
                "response",
                Size,
                "0",
                "Up to this many bytes of a response are read ahead of a client that is slower than the upstream, which is free when it has sent all. Nothing is delayed by it.",
            ),
            key("spool", SizeOrOff, "off", "So many bytes more of either, on disk."),
            key(
                "refuse_larger",
                Bool,
                "false",
                "Refuse a request that does not fit: 413, or 503 when the memory for all is taken.",
            ),
        ],
    },
];

pub(crate) fn table(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).expect("a table of this file")
}

impl Kind {
    fn words(self) -> String {
        match self {
            Text => "text".to_owned(),
            Bool => "true or false".to_owned(),
            Number => "number".to_owned(),
            Time => "time".to_owned(),
            TimeOrOff => "time or `off`".to_owned(),
            Size => "size".to_owned(),
            SizeOrOff => "size or `off`".to_owned(),
            Share => "share".to_owned(),
            OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            TextList => "list of texts".to_owned(),
            TextOrList => "text or list".to_owned(),
            Kind::Table(name) => format!("table, see [{name}](#{})", anchor(name)),
            Tables(name) => format!("tables, see [{name}](#{})", anchor(name)),
            Free => "any table".to_owned(),
            TextsOrTables(name) => format!("texts or tables, see [{name}](#{})", anchor(name)),
        }
    }

    fn schema(self) -> Value {
        match self {
            Text | Time | TimeOrOff | Share => json!({ "type": "string" }),
            Size | SizeOrOff => json!({ "type": ["string", "integer"] }),
            Bool => json!({ "type": "boolean" }),
            Number => json!({ "type": "integer", "minimum": 0 }),
            OneOf(words) => json!({ "enum": words }),
            TextList => json!({ "type": "array", "items": { "type": "string" } }),
            TextOrList => json!({ "type": ["string", "array"], "items": { "type": "string" } }),
            Kind::Table(name) => table_schema(table(name)),
            Tables(name) => json!({ "type": "array", "items": table_schema(table(name)) }),
            Free => json!({ "type": "object" }),
            TextsOrTables(name) => {
                json!({ "type": "array", "items": { "anyOf": [{ "type": "string" }, table_schema(table(name))] } })
            }
        }
    }
}

fn anchor(name: &str) -> String {
    name.replace('.', "")
}

fn table_schema(table: &Table) -> Value {
    let mut properties = Map::new();
    for key in table.keys {
        let mut schema = key.kind.schema();
        schema["description"] = key.doc.into();
        properties.insert(key.name.to_owned(), schema);
    }
    let required: Vec<&str> = table.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// A JSON Schema of the file.
pub fn json_schema() -> Value {
    let mut schema = table_schema(table("root"));
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "tidegate configuration".into();
    schema
}

/// The reference page, as Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration reference\n\nMade by `tidegate reference` from the table that the reader itself uses; do not edit.\n\n\
         The file is TOML. Times are written `250ms`, `30s`, `10m`, `1h`; sizes `512B`, `64KiB`, `8MiB`, `1GiB`; shares `20%`. \
         Files are relative to the configuration. A key that is not listed is an error.\n",
    );
    for table in TABLES {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n## {}\n\n{}\n\n| key | takes | default | |\n|---|---|---|---|\n", table.name, table.doc);
        for key in table.keys {
            let default = match key.default {
                Some("{}") | None if !key.required => String::new(),
                Some("") => "empty".to_owned(),
                Some(default) => format!("`{default}`"),
                None => "required".to_owned(),
            };
            let _ = writeln!(out, "| `{}` | {} | {default} | {} |", key.name, key.kind.words(), key.doc);
        }
    }
    out
}
