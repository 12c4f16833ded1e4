//! By server name and protocol, as a ClientHello gives them: the first row that matches.

use rustc_hash::FxHashMap;

use super::HostPattern;

/// What a row wants; `names` and `alpn` take anything where they are empty.
#[derive(Clone, Debug, Default)]
pub struct TunnelRule {
    pub names: Vec<HostPattern>,
    /// One of these is offered.
    pub alpn: Vec<Vec<u8>>,
}

/// Rows, found by name: a look-up for the name itself and for each of its parents, however many rows there are.
#[derive(Debug, Default)]
pub struct TunnelTable {
    exact: FxHashMap<String, Vec<usize>>,
    below: FxHashMap<String, Vec<usize>>,
    any: Vec<usize>,
    alpn: Vec<Vec<Vec<u8>>>,
}

impl TunnelTable {
    /// Names in lower case, as `server_name` is when asked.
    pub fn new(rules: Vec<TunnelRule>) -> Self {
        let mut table = Self::default();
        for (row, rule) in rules.into_iter().enumerate() {
            if rule.names.is_empty() {
                table.any.push(row);
            }
            for name in rule.names {
                match name {
                    HostPattern::Any => table.any.push(row),
                    HostPattern::Exact(name) => table.exact.entry(name).or_default().push(row),
                    HostPattern::Wildcard(suffix) => table.below.entry(suffix).or_default().push(row),
                }
            }
            table.alpn.push(rule.alpn);
        }
        table
    }

    pub fn is_empty(&self) -> bool {
        self.alpn.is_empty()
    }

    /// The first row for a name in lower case without a final dot, and what the client offers.
    pub fn find<'a>(
        &self,
        server_name: Option<&str>,
        offered: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Option<usize> {
        let takes = |row: usize| {
            let wanted = &self.alpn[row];
            wanted.is_empty() || offered.clone().any(|name| wanted.iter().any(|wanted| *wanted == name))
        };
        let first = |rows: &[usize]| rows.iter().copied().find(|row| takes(*row));
        let mut found = first(&self.any);
        let mut consider = |rows: Option<&Vec<usize>>| {
            let better = rows.and_then(|rows| first(rows));
            found = found.into_iter().chain(better).min();
        };
        if let Some(name) = server_name {
            consider(self.exact.get(name));
            let mut rest = name;
            while let Some((_, parent)) = rest.split_once('.') {
                consider(self.below.get(parent));
                rest = parent;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&[&str], &[&str])]) -> TunnelTable {
        let rule = |(names, alpn): &(&[&str], &[&str])| TunnelRule {
            names: names
                .iter()
                .map(|name| match name.strip_prefix("*.") {
                    Some(suffix) => HostPattern::Wildcard(suffix.to_owned()),
                    None => HostPattern::Exact((*name).to_owned()),
                })
                .collect(),
            alpn: alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
        };
        TunnelTable::new(rows.iter().map(rule).collect())
    }

    fn find(table: &TunnelTable, name: Option<&str>, offered: &[&str]) -> Option<usize> {
        table.find(name, offered.iter().map(|name| name.as_bytes()))
    }

    #[test]
    fn the_first_row_that_matches_is_taken() {
        let table = table(&[
            (&["a.example", "*.b.example"], &["h2"]),
            (&["a.example"], &[]),
            (&["*.example"], &[]),
            (&[], &["imap"]),
        ]);
        assert_eq!(find(&table, Some("a.example"), &["http/1.1", "h2"]), Some(0));
        assert_eq!(find(&table, Some("a.example"), &["http/1.1"]), Some(1));
        assert_eq!(find(&table, Some("x.y.b.example"), &["h2"]), Some(0));
        assert_eq!(find(&table, Some("x.y.b.example"), &[]), Some(2));
        assert_eq!(find(&table, Some("b.example"), &["h2"]), Some(2), "a wildcard is for names below");
        assert_eq!(find(&table, Some("example"), &[]), None);
        assert_eq!(find(&table, None, &["imap"]), Some(3));
        assert_eq!(find(&table, Some("other.org"), &["imap"]), Some(3));
        assert_eq!(find(&table, None, &[]), None);
        assert_eq!(find(&TunnelTable::default(), Some("a"), &["h2"]), None);
    }

    #[test]
    fn earlier_rows_win_whatever_kind_they_are() {
        let table = table(&[(&["*.example"], &[]), (&["a.example"], &[]), (&[], &["h2"])]);
        assert_eq!(find(&table, Some("a.example"), &["h2"]), Some(0));
        assert_eq!(find(&table, Some("a.org"), &["h2"]), Some(2));
    }
}
