//! The differences met so far: grouped, counted, with a few examples of each. Bounded, and free of secrets.

use http::HeaderMap;
use serde::Serialize;
use tidegate_policy::Asked;

use super::difference::{Difference, short};
use crate::plugin::Grants;
use crate::read::Read;

/// Differences of one kind.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Group {
    question: &'static str,
    stood: String,
    shadow: String,
    pub(crate) count: u64,
    examples: Vec<Example>,
}

/// A request in which the answers differed.
#[derive(Clone, Debug, Serialize)]
struct Example {
    method: String,
    host: String,
    /// Without the query, which may carry secrets.
    path: String,
    stood: String,
    shadow: String,
    /// Those the shadow read.
    fields: Vec<Field>,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct Field {
    name: String,
    /// `None`: the request has it not.
    value: Option<String>,
}

/// Most groups, examples of each, and fields of one.
const MAX_GROUPS: usize = 64;
const MAX_EXAMPLES: usize = 3;
const MAX_FIELDS: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Report {
    groups: Vec<Group>,
}

impl Report {
    /// One of a kind for which there is no room is left out. `reads` is what the shadow read, asked for where an example is
    /// wanted.
    pub(crate) fn add(
        &mut self,
        question: &'static str,
        difference: Difference,
        asked: &Asked,
        grants: &Grants,
        reads: impl FnOnce() -> Vec<Read>,
    ) {
        let Difference { kind: [stood, shadow], exact } = difference;
        let same = |group: &Group| group.question == question && group.stood == stood && group.shadow == shadow;
        let index = match self.groups.iter().position(same) {
            Some(index) => index,
            None if self.groups.len() >= MAX_GROUPS => return,
            None => {
                self.groups.push(Group { question, stood, shadow, count: 0, examples: Vec::new() });
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[index];
        group.count += 1;
        if group.examples.len() < MAX_EXAMPLES {
            let request = &asked.request;
            let [stood, shadow] = exact;
            let example = Example {
                method: short(request.method.as_str().to_owned()),
                host: short(request.authority.to_string()),
                path: short(request.target.path().to_owned()),
                stood,
                shadow,
                fields: fields(&request.headers, grants, &reads()),
            };
            // The same request again would teach nothing.
            if !group.examples.iter().any(|known| known.path == example.path && known.fields == example.fields) {
                group.examples.push(example);
            }
        }
    }

    /// The largest groups first.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let mut groups = self.groups.clone();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups
    }
}

/// The fields that were read and may be read, with values where they are no secrets.
fn fields(headers: &HeaderMap, grants: &Grants, reads: &[Read]) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    let mut add = |name: &str| {
        let known = fields.iter().any(|field| field.name.eq_ignore_ascii_case(name));
        if known || fields.len() >= MAX_FIELDS || !grants.field(name) {
            return;
        }
        let value = headers.get(name).map(|value| {
            if secret(name) {
                "(withheld)".to_owned()
            } else {
                short(String::from_utf8_lossy(value.as_bytes()).into_owned())
            }
        });
        fields.push(Field { name: short(name.to_ascii_lowercase()), value });
    };
    for read in reads {
        match read {
            Read::Header(name) => add(name.as_str()),
            Read::HeaderValues(name) => add(name),
            Read::Headers => headers.keys().for_each(|name| add(name.as_str())),
            Read::Cookie(_) => add("cookie"),
            _ => {}
        }
    }
    fields
}

/// Whether a field carries credentials, by its name: better one withheld too many.
fn secret(name: &str) -> bool {
    const PARTS: [&str; 11] = [
        "auth",
        "cookie",
        "token",
        "secret",
        "key",
        "password",
        "passwd",
        "session",
        "credential",
        "signature",
        "cert",
    ];
    let name = name.to_ascii_lowercase();
    PARTS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use tidegate_policy::contract::asked_with;

    use super::*;

    fn difference(shadow: &str) -> Difference {
        let words = ["forward a".to_owned(), format!("forward {shadow}")];
        Difference { kind: words.clone(), exact: words }
    }

    fn all() -> Grants {
        Grants { headers: None, wasi: false }
    }

    #[test]
    fn differences_are_grouped_with_few_examples() {
        let mut report = Report::default();
        for index in 0..100 {
            let asked = asked_with("GET", &format!("/{index}?token=secret"), &[]);
            report.add("route", difference(if index % 4 == 0 { "c" } else { "b" }), &asked, &all(), Vec::new);
        }
        let groups = report.groups();
        let shown: Vec<_> =
            groups.iter().map(|group| (group.shadow.as_str(), group.count, group.examples.len())).collect();
        assert_eq!(shown, [("forward b", 75, 3), ("forward c", 25, 3)]);
        let text = serde_json::to_string(&groups).expect("JSON");
        assert!(text.contains("\"path\":\"/1\"") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_guest_that_makes_names_up_fills_no_memory() {
        let mut report = Report::default();
        for index in 0..1000 {
            let path = format!("/{}", "x".repeat(5000));
            report.add("route", difference(&index.to_string()), &asked_with("GET", &path, &[]), &all(), Vec::new);
        }
        let groups = report.groups();
        assert_eq!(groups.len(), MAX_GROUPS);
        assert!(serde_json::to_string(&groups).expect("JSON").len() < 64 * 1024);
    }

    #[test]
    fn examples_show_what_was_read_and_granted_and_no_secrets() {
        let asked = asked_with(
            "GET",
            "/",
            &[
                ("x-tenant", "acme"),
                ("x-plan", "gold"),
                ("authorization", "Bearer abc"),
                ("cookie", "sid=abc"),
                ("x-api-key", "abc"),
            ],
        );
        let header = |name| Read::Header(HeaderName::from_static(name));
        let read = [
            Read::Path,
            header("x-tenant"),
            header("x-region"),
            header("authorization"),
            Read::Cookie("sid".into()),
            header("x-api-key"),
        ];
        let shown = |grants: &Grants, reads: &[Read]| -> Vec<(String, Option<String>)> {
            fields(&asked.request.headers, grants, reads).into_iter().map(|field| (field.name, field.value)).collect()
        };
        let withheld = || Some("(withheld)".to_owned());
        let expected = [
            ("x-tenant", Some("acme".to_owned())),
            ("x-region", None),
            ("authorization", withheld()),
            ("cookie", withheld()),
            ("x-api-key", withheld()),
        ];
        assert_eq!(shown(&all(), &read), expected.map(|(name, value)| (name.to_owned(), value)));
        let tenant = Grants { headers: Some(vec!["x-tenant".to_owned()]), wasi: false };
        assert_eq!(shown(&tenant, &read), [("x-tenant".to_owned(), Some("acme".to_owned()))]);
        assert_eq!(shown(&tenant, &[Read::Headers]).len(), 1);
    }
}
