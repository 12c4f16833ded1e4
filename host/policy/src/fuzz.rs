//! What the fuzzer calls, with `--cfg fuzzing` only: each function takes any bytes and panics where a property is broken.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::native::{
    self, HostPattern, PathPattern, RouteRule, RouteTable, TrustedFamily, ValuePattern, parse_forwarded,
    received_identity, render_forwarded,
};
use crate::{ConnectionHead, HttpVersion, ProxyTlvs, RequestEdits, RequestHead, Scheme, Target, is_core_field};

/// Forwarding fields: an untrusted peer is the client whatever it says; of trusted ones the client is the peer or an address that
/// was named; what was read is written so that it reads the same.
pub fn identity(data: &[u8]) {
    let [setup, data @ ..] = data else { return };
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let (kind, value) = line.split_first().unwrap_or((&0, &[]));
        let names = ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(names[usize::from(*kind) % names.len()]), value);
        }
    }
    let connection = connection();
    let client = connection.client;
    let families = [TrustedFamily::Auto, TrustedFamily::Forwarded, TrustedFamily::XForwarded];
    let family = families[usize::from(*setup) % 3];
    assert_eq!(received_identity(&headers, &connection, &[], family), (client.ip(), Vec::new()));
    let trusted = ["10.0.0.0/8".parse().expect("a network"), "fd00::/8".parse().expect("a network")];
    let (ip, elements) = received_identity(&headers, &connection, &trusted, family);
    let named =
        |ip: IpAddr| elements.iter().any(|element| element.r#for.as_ref().and_then(|node| node.ip()) == Some(ip));
    assert!(ip == client.ip() || named(ip), "{ip}: {elements:?}");
    let text = render_forwarded(&elements);
    let again: Vec<_> = parse_forwarded(text.as_bytes()).into_iter().flatten().collect();
    // An element that says nothing is not written.
    let told = elements.iter().filter(|element| render_forwarded(std::slice::from_ref(*element)) != "");
    assert_eq!(again.iter().collect::<Vec<_>>(), told.collect::<Vec<_>>(), "{text}");
}

/// A connection from 10.0.0.1 over TLS.
pub fn connection() -> ConnectionHead {
    let client = SocketAddr::from(([10, 0, 0, 1], 1234));
    ConnectionHead {
        id: 1,
        peer: client,
        client,
        local: SocketAddr::from(([127, 0, 0, 1], 443)),
        proxy_tlvs: ProxyTlvs::default(),
        listener: "edge".into(),
        tls: true,
        tls_version: None,
        server_name: None,
        alpn: None,
        client_certificate: None,
        client_chain: Box::default(),
    }
}

/// `Retry-After`: a pause in seconds is digits and nothing else, and no longer than they say.
pub fn retry_after(headers: &HeaderMap) {
    let Some(pause) = native::retry_after(headers) else { return };
    let text = headers["retry-after"].to_str().unwrap_or_default().trim();
    match text.parse::<u64>() {
        Ok(seconds) => {
            assert!(text.bytes().all(|byte| byte.is_ascii_digit()) && pause.as_secs() == seconds, "{text:?}")
        }
        // A date, in one of its three forms.
        Err(_) => assert!(text.len() >= 24, "{text:?}"),
    }
}

/// What a policy may do to a request: whatever it says, no edit touches what the core owns or ends a line.
pub fn edits(data: &[u8]) {
    let edits = request_edits(data);
    let breaks = |text: &str| text.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    for text in [edits.path.as_deref(), edits.authority.as_deref(), edits.query.as_ref().and_then(|q| q.as_deref())] {
        assert!(text.is_none_or(|text| !breaks(text) && !text.contains('#')), "{text:?}");
    }
    assert!(edits.path.as_deref().is_none_or(|path| path.starts_with('/') && !path.contains('?')));
    let mut headers = HeaderMap::new();
    edits.headers.apply(&mut headers);
    for (name, value) in &headers {
        assert!(!is_core_field(name), "{name}");
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{name}: {value:?}");
    }
}

/// As many edits as are granted of those that `data` asks for.
pub fn request_edits(data: &[u8]) -> RequestEdits {
    let mut edits = RequestEdits::default();
    for line in data.split(|byte| *byte == 0).take(32) {
        let Some((kind, rest)) = line.split_first() else { continue };
        let text = String::from_utf8_lossy(rest);
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        let _ = match kind % 7 {
            0 => edits.headers.set(name, value.as_bytes()),
            1 => edits.headers.append(name, value.as_bytes()),
            2 => edits.headers.remove(name),
            3 => edits.set_path(&text),
            4 => edits.set_query(Some(&text)),
            5 => edits.set_authority(&text),
            _ => edits.set_note(name.to_owned(), value.to_owned()),
        };
    }
    edits
}

/// The route table finds by hash what a look at every row would have found.
pub fn route_table(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some(request) = lines.next().and_then(asked_of) else { return };
    let rules: Vec<RouteRule> = lines.take(24).filter_map(rule).collect();
    let host = request.host().strip_suffix('.').unwrap_or(request.host());
    let path = request.target.path();
    // The weight of a host and of a path that match: the less, the sooner they are looked at.
    let of_host = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(name) => (name == host).then_some(0),
        HostPattern::Wildcard(suffix) => {
            let below = host.strip_suffix(suffix.as_str())?.ends_with('.');
            below.then_some(1 + usize::from(u16::MAX) - suffix.len())
        }
        HostPattern::Any => Some(usize::MAX),
    };
    let of_path = |pattern: &PathPattern| match pattern {
        PathPattern::Exact(wanted) => (wanted == path).then_some(0),
        PathPattern::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            let rest = path.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(1 + usize::from(u16::MAX) - prefix.len())
        }
        PathPattern::Any => Some(usize::MAX),
    };
    let rows = rules.iter().enumerate().filter_map(|(index, rule)| {
        let hosts = if rule.hosts.is_empty() { &[HostPattern::Any][..] } else { &rule.hosts };
        let host = hosts.iter().filter_map(of_host).min()?;
        let fits = (rule.methods.is_empty() || rule.methods.contains(&request.method))
            && rule.headers.iter().all(|(name, wanted)| match wanted {
                ValuePattern::Present => request.headers.contains_key(name),
                ValuePattern::Exact(wanted) => {
                    request.headers.get_all(name).iter().any(|v| v.as_bytes() == &wanted[..])
                }
            });
        fits.then_some((host, of_path(&rule.path)?, index))
    });
    let expected = rows.min().map(|(.., index)| index);
    assert_eq!(RouteTable::new(rules.clone()).find(&request), expected, "{request:?} in {rules:?}");
}

/// `method host path tenant`.
fn asked_of(line: &[u8]) -> Option<RequestHead> {
    let mut words = std::str::from_utf8(line).ok().filter(|line| line.is_ascii())?.split(' ');
    let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
    let (authority, target) = (words.next()?, words.next()?);
    let mut headers = HeaderMap::new();
    if let Some(tenant) = words.next() {
        headers.insert("x-tenant", HeaderValue::from_str(tenant).ok()?);
    }
    Some(RequestHead {
        version: HttpVersion::Http11,
        method,
        scheme: Scheme::Https,
        authority: authority.into(),
        target: Target::new(target.into()),
        headers,
        tunnel: None,
    })
}

/// `path [hosts [method [tenant]]]`: `/a/*` is a prefix, `*` any; hosts with commas between, `*.a` is a wildcard.
fn rule(line: &[u8]) -> Option<RouteRule> {
    let line = std::str::from_utf8(line).ok().filter(|line| line.is_ascii())?;
    let mut words = line.split(' ').map(|word| Some(word).filter(|word| *word != "*"));
    let path = match words.next().flatten() {
        None => PathPattern::Any,
        Some(path) => match path.strip_suffix("/*") {
            Some(prefix) => PathPattern::Prefix(prefix.to_owned()),
            None => PathPattern::Exact(path.to_owned()),
        },
    };
    let host = |host: &str| match host.strip_prefix("*.") {
        Some(suffix) => HostPattern::Wildcard(suffix.to_owned()),
        None if host == "*" => HostPattern::Any,
        None => HostPattern::Exact(host.to_owned()),
    };
    let hosts = words.next().flatten().map(|hosts| hosts.split(',').map(host).collect()).unwrap_or_default();
    let method = words.next().flatten().and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let tenant = words.next().map(|tenant| match tenant {
        Some(tenant) => ValuePattern::Exact(tenant.as_bytes().to_vec()),
        None => ValuePattern::Present,
    });
    let headers = tenant.map(|wanted| (HeaderName::from_static("x-tenant"), wanted));
    let cluster = Some("api".into());
    Some(RouteRule {
        hosts,
        path,
        methods: method.into_iter().collect(),
        headers: headers.into_iter().collect(),
        cluster,
    })
}
