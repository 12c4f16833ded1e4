//! Routes: the table and what follows from each of its rows.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tidegate_config::{Destination, HeaderMatch, HostMatch, PathMatch, Respond, Route as RouteConfig};
use tidegate_policy::native::{
    ForwardingMode, HostPattern, PathPattern, RetryOn, RetryRules, RouteRule, RouteTable, Split, StandardForwarding,
    ValuePattern,
};
use tidegate_policy::{DirectResponse, Families, Node, is_core_field};
use tidegate_proxy::snapshot::{Cluster, Compression, ConnectTarget, Route, RouteAction, RouteBuffer};
use tidegate_proxy::{ClientCertificate, Coding};

use super::Scope;
use super::clusters::Kept;

pub(super) fn compile(
    scope: &mut Scope<'_>,
    clusters: &HashMap<String, Kept>,
) -> Option<(RouteTable, Vec<Arc<Route>>)> {
    let config = scope.config;
    let mut rules = Vec::with_capacity(config.routes.len());
    let mut routes = Vec::with_capacity(config.routes.len());
    for route in &config.routes {
        // Each part of each row is looked at, so that all that is wrong is told at once.
        rules.extend(rule(scope, route));
        routes.extend(compile_one(scope, route, clusters).map(Arc::new));
    }
    let whole = rules.len() == config.routes.len() && routes.len() == config.routes.len();
    whole.then(|| (RouteTable::new(rules), routes))
}

fn rule(scope: &mut Scope<'_>, config: &RouteConfig) -> Option<RouteRule> {
    let hosts = config.hosts.iter().map(host);
    let path = match &config.path {
        PathMatch::Any => PathPattern::Any,
        PathMatch::Exact(path) => PathPattern::Exact(path.clone()),
        PathMatch::Prefix(prefix) => PathPattern::Prefix(prefix.clone()),
    };
    let methods: Result<Vec<Method>, _> = config.methods.iter().map(|method| method.parse()).collect();
    let headers = config.headers.iter().map(|(name, value)| {
        let value = match value {
            HeaderMatch::Present => ValuePattern::Present,
            HeaderMatch::Exact(value) => ValuePattern::Exact(value.clone().into_bytes()),
        };
        name.parse::<HeaderName>().map(|name| (name, value))
    });
    let headers: Result<Vec<_>, _> = headers.collect();
    let (Ok(methods), Ok(headers)) = (methods, headers) else {
        scope.error(config.line, format!("route {:?} has a method or field name that HTTP does not know", config.name));
        return None;
    };
    let cluster = match &config.destination {
        Destination::Cluster(name) => Some(name.as_str().into()),
        _ => None,
    };
    Some(RouteRule { hosts: hosts.collect(), path, methods, headers, cluster })
}

pub(super) fn host(host: &HostMatch) -> HostPattern {
    match host {
        HostMatch::Exact(name) => HostPattern::Exact(name.clone()),
        HostMatch::Wildcard(suffix) => HostPattern::Wildcard(suffix.clone()),
    }
}

fn compile_one(scope: &mut Scope<'_>, config: &RouteConfig, clusters: &HashMap<String, Kept>) -> Option<Route> {
    let cluster = |name: &String| -> Option<Arc<Cluster>> { clusters.get(name).map(|kept| kept.cluster.clone()) };
    let action = match &config.destination {
        // One that did not compile was noted.
        Destination::Cluster(name) => cluster(name).map(RouteAction::Cluster),
        Destination::Split(shares) => {
            let split = Split::new(shares.iter().map(|(_, weight)| *weight));
            let clusters = shares.iter().map(|(name, _)| cluster(name)).collect::<Option<_>>();
            clusters.map(|clusters| RouteAction::Split(split, clusters))
        }
        Destination::Respond(respond) => direct_response(scope, config, respond).map(RouteAction::Respond),
        Destination::Nothing => Some(RouteAction::Nothing),
    };
    let router = scope.asked(config.router.as_deref(), config.router_line, "route", |plugin| plugin.router());
    let forwarding = &config.forwarding;
    let forwarding_plugin =
        scope.asked(forwarding.plugin.as_deref(), forwarding.line, "identify", |plugin| plugin.forwarding());
    let retry = &config.retry;
    let retry_plugin = scope.asked(retry.plugin.as_deref(), retry.line, "decide", |plugin| plugin.retry());
    let has = |word: &str| retry.on.iter().any(|on| on == word);
    let on = RetryOn {
        connect: has("connect"),
        reset: has("reset"),
        refused: has("refused"),
        timeout: has("timeout"),
        gateway: has("gateway"),
        server_error: has("5xx"),
        statuses: retry.statuses.iter().filter_map(|status| StatusCode::from_u16(*status).ok()).collect(),
    };
    Some(Route {
        name: config.name.as_str().into(),
        tenant: config.tenant.as_deref().and_then(|name| scope.tenant(name)).map(|tenant| tenant.proxy.clone()),
        action: action?,
        router,
        forwarding: StandardForwarding {
            mode: if forwarding.append { ForwardingMode::Append } else { ForwardingMode::Replace },
            families: Families {
                forwarded: forwarding.families.forwarded,
                x_forwarded: forwarding.families.x_forwarded,
                x_real_ip: forwarding.families.x_real_ip,
            },
            by: forwarding.by.as_deref().map(node),
        },
        forwarding_plugin,
        client_certificate: match forwarding.client_certificate {
            tidegate_config::ClientCertificate::Off => ClientCertificate::Off,
            tidegate_config::ClientCertificate::Leaf => ClientCertificate::Leaf,
            tidegate_config::ClientCertificate::Chain => ClientCertificate::Chain,
        },
        retry: RetryRules { on, backoff: retry.backoff, max_backoff: retry.max_backoff },
        retry_plugin,
        attempts: retry.attempts,
        hedge_after: retry.hedge_after,
        timeout: config.timeout,
        attempt_timeout: config.attempt_timeout,
        idle_timeout: config.idle_timeout,
        max_request_body: config.max_request_body,
        buffer: RouteBuffer {
            request: config.buffer.request,
            response: config.buffer.response,
            spool: config.buffer.spool,
            refuse_larger: config.buffer.refuse_larger,
        },
        compression: config.compress.as_ref().map(|compress| Compression {
            codings: compress
                .encodings
                .iter()
                .filter_map(|name| Coding::ALL.into_iter().find(|coding| coding.name() == name))
                .collect(),
            types: compress.types.clone().into(),
            min_size: compress.min_size,
            credentials: compress.credentials,
        }),
        websocket: config.websocket,
        connect: targets(&config.connect),
        connect_udp: targets(&config.connect_udp),
        udp_idle_timeout: config.udp_idle_timeout,
    })
}

fn targets(targets: &[tidegate_config::ConnectTarget]) -> Box<[ConnectTarget]> {
    targets.iter().map(|to| ConnectTarget { host: host(&to.host), port: to.port }).collect()
}

fn node(by: &str) -> Node {
    if let Ok(ip) = by.parse() {
        Node::Ip(ip)
    } else if let Ok(address) = by.parse() {
        Node::Address(address)
    } else {
        Node::Obfuscated(by.to_owned())
    }
}

fn direct_response(scope: &mut Scope<'_>, config: &RouteConfig, respond: &Respond) -> Option<DirectResponse> {
    let mut headers = HeaderMap::new();
    let mut whole = true;
    for (name, value) in &respond.headers {
        let refused = match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            (Ok(name), Ok(_)) if is_core_field(&name) => {
                "only the gateway itself writes this field: it frames a message, belongs to one connection or tells of a client"
            }
            (Ok(name), Ok(value)) => {
                headers.append(name, value);
                continue;
            }
            _ => "it is not a header field",
        };
        whole = false;
        let message = format!("route {:?}: respond: {name}: {value:?}: {refused}", config.name);
        scope.error(config.destination_line, message);
    }
    let status = StatusCode::from_u16(respond.status).ok().filter(|_| whole)?;
    Some(DirectResponse { status, headers, body: respond.body.clone().into() })
}
