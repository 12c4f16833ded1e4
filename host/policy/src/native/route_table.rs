//! The route table: host, path, method, header, in that order of weight.
//!
//! An exact host beats a wildcard, a longer wildcard a shorter one, any host comes last; within a host an exact path
//! beats a longer prefix, that a shorter one; what is left is tried in the order of the file. Where all rows of a host
//! fail, the next wider host has its say. Look-ups are by hash, of fields' values too, so ten thousand routes cost what ten do.

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use http::{HeaderName, Method};
use rustc_hash::FxHashMap;

use crate::{Answered, Asked, Decision, RequestEdits, RequestHead, RouteAnswer, Router};

/// Which authorities a row is for. Names are lower case, without port and final dot.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HostPattern {
    Any,
    Exact(String),
    /// `example.com` for `*.example.com`: every name below it, at any depth, but not itself.
    Wildcard(String),
}

/// Which paths, compared as received.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PathPattern {
    Any,
    Exact(String),
    /// `/v1` for `/v1/*`: itself and everything below it.
    Prefix(String),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ValuePattern {
    Present,
    Exact(Vec<u8>),
}

/// A row, and the cluster it leads to as far as the table itself answers the question.
#[derive(Clone, Debug)]
pub struct RouteRule {
    /// Empty: any.
    pub hosts: Vec<HostPattern>,
    pub path: PathPattern,
    /// Empty: any.
    pub methods: Vec<Method>,
    pub headers: Vec<(HeaderName, ValuePattern)>,
    pub cluster: Option<Arc<str>>,
}

impl RouteRule {
    fn matches(&self, request: &RequestHead) -> bool {
        (self.methods.is_empty() || self.methods.contains(&request.method))
            && self.headers.iter().all(|(name, wanted)| match wanted {
                ValuePattern::Present => request.headers.contains_key(name),
                ValuePattern::Exact(wanted) => {
                    request.headers.get_all(name).iter().any(|value| value.as_bytes() == &**wanted)
                }
            })
    }
}

/// Rows of one host and path, which methods and fields tell apart. The first that matches counts.
#[derive(Debug, Default)]
struct Rows {
    /// Those that want no field to have a certain value.
    plain: Vec<u32>,
    /// The others, by the first field that they want so, and that value.
    by_field: Vec<(HeaderName, ByValue)>,
}

type ByValue = FxHashMap<Box<[u8]>, Vec<u32>>;

impl Rows {
    fn add(&mut self, rule: &RouteRule, row: u32) {
        let certain = rule.headers.iter().find_map(|(name, wanted)| match wanted {
            ValuePattern::Exact(value) => Some((name, value)),
            ValuePattern::Present => None,
        });
        let Some((name, value)) = certain else { return self.plain.push(row) };
        let at = self.by_field.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.by_field.push((name.clone(), ByValue::default()));
            self.by_field.len() - 1
        });
        self.by_field[at].1.entry(value.as_slice().into()).or_default().push(row);
    }

    fn first(&self, rules: &[RouteRule], request: &RequestHead) -> Option<usize> {
        let matching = |rows: &[u32], before: u32| {
            let mut rows = rows.iter().copied().take_while(|row| *row < before);
            rows.find(|row| rules[*row as usize].matches(request))
        };
        let mut first = matching(&self.plain, u32::MAX);
        for (name, by_value) in &self.by_field {
            for value in request.headers.get_all(name) {
                let rows = by_value.get(value.as_bytes());
                first = rows.and_then(|rows| matching(rows, first.unwrap_or(u32::MAX))).or(first);
            }
        }
        first.map(|row| row as usize)
    }
}

/// The rows of one host, by path.
#[derive(Debug, Default)]
struct Paths {
    exact: FxHashMap<Box<str>, Rows>,
    prefixes: FxHashMap<Box<str>, Rows>,
    prefix_lengths: Lengths,
    any: Rows,
}

/// The lengths that the keys of a table have, the greatest first. Only parts of these lengths are looked up: what a client
/// sends may be a thousand times as long as what anybody configured, and hashing each of its parts would be quadratic.
#[derive(Debug, Default)]
struct Lengths(Vec<usize>);

impl Lengths {
    fn add(&mut self, length: usize) {
        if let Err(at) = self.0.binary_search_by(|other| length.cmp(other)) {
            self.0.insert(at, length);
        }
    }

    /// The heads of `path` that could be keys, the longest first: itself, and what ends before a `/`.
    fn heads<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        let ends = |length: &usize| *length == path.len() || path.as_bytes().get(*length) == Some(&b'/');
        self.0.iter().copied().filter(ends).map(|length| &path[..length])
    }

    /// The tails of `host` that could be keys, the longest first: what begins behind a `.`.
    fn tails<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a str> {
        let starts = self.0.iter().filter_map(|length| host.len().checked_sub(*length));
        starts.filter(|start| *start > 0 && host.as_bytes()[*start - 1] == b'.').map(|start| &host[start..])
    }
}

/// All rows, indexed.
#[derive(Debug)]
pub struct RouteTable {
    rules: Vec<RouteRule>,
    exact: FxHashMap<Box<str>, Paths>,
    wildcards: FxHashMap<Box<str>, Paths>,
    wildcard_lengths: Lengths,
    any: Paths,
}

impl RouteTable {
    pub fn new(rules: Vec<RouteRule>) -> Self {
        let mut table = Self {
            rules: Vec::new(),
            exact: FxHashMap::default(),
            wildcards: FxHashMap::default(),
            wildcard_lengths: Lengths::default(),
            any: Paths::default(),
        };
        for (index, rule) in rules.iter().enumerate() {
            let index = index as u32;
            if rule.hosts.is_empty() {
                table.any.add(rule, index);
            }
            for host in &rule.hosts {
                let paths = match host {
                    HostPattern::Any => &mut table.any,
                    HostPattern::Exact(name) => table.exact.entry(name.as_str().into()).or_default(),
                    HostPattern::Wildcard(suffix) => {
                        table.wildcard_lengths.add(suffix.len());
                        table.wildcards.entry(suffix.as_str().into()).or_default()
                    }
                };
                paths.add(rule, index);
            }
        }
        table.rules = rules;
        table
    }

    pub fn rules(&self) -> &[RouteRule] {
        &self.rules
    }

    /// The index of the row that `request` belongs to.
    pub fn find(&self, request: &RequestHead) -> Option<usize> {
        let host = request.host();
        let host = host.strip_suffix('.').unwrap_or(host);
        if !self.exact.is_empty()
            && let Some(found) = self.exact.get(host).and_then(|paths| self.within(paths, request))
        {
            return Some(found);
        }
        for suffix in self.wildcard_lengths.tails(host) {
            if let Some(found) = self.wildcards.get(suffix).and_then(|paths| self.within(paths, request)) {
                return Some(found);
            }
        }
        self.within(&self.any, request)
    }

    fn within(&self, paths: &Paths, request: &RequestHead) -> Option<usize> {
        let first = |rows: &Rows| rows.first(&self.rules, request);
        let path = request.target.path();
        if let Some(found) = paths.exact.get(path).and_then(first) {
            return Some(found);
        }
        for head in paths.prefix_lengths.heads(path) {
            if let Some(found) = paths.prefixes.get(head).and_then(first) {
                return Some(found);
            }
        }
        first(&paths.any)
    }
}

impl Paths {
    fn add(&mut self, rule: &RouteRule, row: u32) {
        match &rule.path {
            PathPattern::Any => self.any.add(rule, row),
            PathPattern::Exact(path) => self.exact.entry(path.as_str().into()).or_default().add(rule, row),
            // `/*` is kept as the empty prefix, the head of every path.
            PathPattern::Prefix(path) => {
                let path = path.trim_end_matches('/');
                self.prefix_lengths.add(path.len());
                self.prefixes.entry(path.into()).or_default().add(rule, row);
            }
        }
    }
}

impl Router for RouteTable {
    fn name(&self) -> ByteString {
        ByteString::from_static("route_table")
    }

    fn route(&self, asked: &Rc<Asked>, _: &mut RequestEdits) -> Decision<RouteAnswer> {
        let cluster = self.find(&asked.request).and_then(|row| self.rules[row].cluster.clone());
        Ok(Answered::native(cluster.map_or(RouteAnswer::Pass, RouteAnswer::Forward)))
    }
}

/// A weighted choice by a key.
#[derive(Clone, Debug)]
pub struct Split {
    /// Running sums of the weights.
    bounds: Box<[u64]>,
}

impl Split {
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut sum = 0;
        let bounds = weights.into_iter().map(|weight| {
            sum += u64::from(weight);
            sum
        });
        Self { bounds: bounds.collect() }
    }

    /// The index whose share `key` falls into; equal keys, equal index. Past the end where no weight is positive.
    pub fn pick(&self, key: u64) -> usize {
        let Some(sum) = self.bounds.last().filter(|sum| **sum > 0) else { return self.bounds.len() };
        self.bounds.partition_point(|bound| *bound <= key % sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::asked;

    fn rule(host: &str, path: &str, method: &str) -> RouteRule {
        let host = match host.strip_prefix("*.") {
            Some(suffix) => HostPattern::Wildcard(suffix.to_owned()),
            None if host == "*" => HostPattern::Any,
            None => HostPattern::Exact(host.to_owned()),
        };
        let path = match path.strip_suffix("/*") {
            Some(prefix) => PathPattern::Prefix(prefix.to_owned()),
            None if path == "*" => PathPattern::Any,
            None => PathPattern::Exact(path.to_owned()),
        };
        let methods = if method.is_empty() { vec![] } else { vec![method.parse().expect("a method")] };
        RouteRule { hosts: vec![host], path, methods, headers: vec![], cluster: None }
    }

    fn found(rules: &[RouteRule], authority: &str, path: &str) -> Option<usize> {
        let mut request = asked("GET", path).request.clone();
        request.authority = authority.into();
        RouteTable::new(rules.to_vec()).find(&request)
    }

    #[test]
    fn the_narrower_host_wins_then_the_narrower_path_then_the_order() {
        let rules = [
            rule("*", "*", ""),
            rule("*.example.com", "/v1/*", ""),
            rule("*.api.example.com", "*", ""),
            rule("www.example.com", "/v1/*", ""),
            rule("www.example.com", "/v1/a", "POST"),
            rule("www.example.com", "/v1/a/*", ""),
            rule("www.example.com", "/v1/a/*", ""),
        ];
        for (authority, path, expected) in [
            ("other", "/", 0),
            ("x.example.com", "/v1/z", 1),
            ("x.example.com", "/v2", 0),
            ("x.api.example.com", "/v1/z", 2),
            ("example.com", "/v1/z", 0),
            ("www.example.com", "/v1", 3),
            ("www.example.com:8443", "/v1/b", 3),
            ("www.example.com.", "/v1/a", 5),
            ("www.example.com", "/v1/a/b/c", 5),
            ("www.example.com", "/v1x", 0),
            ("www.example.com", "/v1/?q=/v1/a/", 3),
            ("[::1]:80", "/", 0),
        ] {
            assert_eq!(found(&rules, authority, path), Some(expected), "{authority}{path}");
        }
    }

    /// Conduct "Path": what is matched is what is forwarded, so nothing is decoded.
    #[test]
    fn encoded_paths_are_other_paths() {
        let rules = [rule("*", "/admin/*", "")];
        assert_eq!(found(&rules, "h", "/admin/x"), Some(0));
        for path in ["/%61dmin/x", "//admin/x", "/x/../admin/x", "/Admin/x", "/admin;a/x", "/admin%2fx"] {
            assert_eq!(found(&rules, "h", path), None, "{path}");
        }
    }

    /// What a client sends may be long; what is looked up is bounded by what was configured.
    #[test]
    fn a_path_of_slashes_and_a_host_of_dots_take_few_look_ups() {
        let rules = [rule("*.example.com", "/v1/*", ""), rule("*.a.b.example.com", "/*", ""), rule("*", "/v1/a/*", "")];
        let table = RouteTable::new(rules.to_vec());
        let slashes = "/".repeat(64 * 1024);
        let within = &table.wildcards["example.com"];
        assert_eq!(within.prefix_lengths.heads(&slashes).count(), 1);
        assert_eq!(table.any.prefix_lengths.heads("/v1/a/b").collect::<Vec<_>>(), ["/v1/a"]);
        let dots = format!("{}example.com", "a.".repeat(32 * 1024));
        assert_eq!(table.wildcard_lengths.tails(&dots).count(), 2);
        assert_eq!(found(&rules, &dots, &slashes), None);
        assert_eq!(found(&rules, &dots, &format!("/v1{slashes}")), Some(0));
    }

    #[test]
    fn headers_narrow_a_row_and_fall_through() {
        let mut beta = rule("*", "*", "");
        beta.headers = vec![(HeaderName::from_static("x-env"), ValuePattern::Exact(b"beta".to_vec()))];
        let table = RouteTable::new(vec![beta, rule("*", "*", "")]);
        let mut request = asked("GET", "/").request.clone();
        assert_eq!(table.find(&request), Some(1));
        request.headers.append("x-env", http::HeaderValue::from_static("alpha"));
        request.headers.append("x-env", http::HeaderValue::from_static("beta"));
        assert_eq!(table.find(&request), Some(0));
    }

    /// Rows are found by a field's value; which of them comes first still counts, whatever else they want.
    #[test]
    fn the_order_holds_between_rows_of_different_fields() {
        let row = |fields: &[(&'static str, &str)], method: &str| RouteRule {
            headers: fields
                .iter()
                .map(|(name, value)| {
                    let wanted =
                        if *value == "*" { ValuePattern::Present } else { ValuePattern::Exact((*value).into()) };
                    (HeaderName::from_static(name), wanted)
                })
                .collect(),
            ..rule("*", "*", method)
        };
        let rows = [
            row(&[("x-a", "1"), ("x-b", "1")], ""),
            row(&[("x-b", "*"), ("x-a", "2")], ""),
            row(&[("x-b", "2")], "POST"),
            row(&[("x-b", "2")], ""),
            row(&[("x-a", "*")], ""),
            row(&[("x-a", "1")], ""),
        ];
        let table = RouteTable::new(rows.to_vec());
        let find = |fields: &[(&str, &str)]| table.find(&crate::contract::asked_with("GET", "/", fields).request);
        assert_eq!(find(&[("x-b", "1"), ("x-a", "1")]), Some(0));
        assert_eq!(find(&[("x-a", "2")]), Some(4));
        assert_eq!(find(&[("x-a", "2"), ("x-b", "2")]), Some(1));
        assert_eq!(find(&[("x-a", "1"), ("x-b", "2")]), Some(3));
        assert_eq!(find(&[("x-a", "1"), ("x-a", "2"), ("x-b", "3")]), Some(1));
        assert_eq!(find(&[("x-a", "1")]), Some(4));
        assert_eq!(find(&[("x-c", "1")]), None);
    }

    #[test]
    fn a_split_follows_its_weights_exactly() {
        let split = Split::new([9, 0, 1]);
        let counts = (0..1000).fold([0; 3], |mut counts, key| {
            counts[split.pick(key)] += 1;
            counts
        });
        assert_eq!(counts, [900, 0, 100]);
        assert_eq!(Split::new([0, 0]).pick(5), 2);
    }
}
