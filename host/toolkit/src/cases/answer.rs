//! Answers as lines, the expected and the one that came, and what differs between them.

use std::fmt::Write as _;

use http::HeaderMap;
use tidegate_policy::native::render_forwarded;
use tidegate_policy::{
    Buffering, Choice, DirectResponse, Families, HeaderEdit, HeaderEdits, Identity, RequestEdits, RouteAnswer,
    TunnelAnswer, Verdict,
};

use super::facts::{chain, families, identity};
use super::format::{Case, Edits, Expect};
use crate::words::Question;

/// What came of a case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The settings are refused, with these words.
    Refused(String),
    /// No answer: its kind and what is known of it.
    Fault(String),
    /// The answer first, its edits below.
    Answer(Vec<String>),
}

impl Outcome {
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Refused(reason) => vec![format!("settings refused: {reason}")],
            Self::Fault(fault) => vec![format!("fault: {fault}")],
            Self::Answer(lines) => lines.clone(),
        }
    }

    /// Where this is not what the case expects: what is missing with a minus, what is there in its place with a plus.
    pub(super) fn differs(&self, case: &Case, question: Question) -> Result<Option<String>, String> {
        let expect = &case.expect;
        let wanted = match (self, &expect.refused, &expect.fault) {
            (Self::Refused(reason), Some(part), _) if reason.contains(part.as_str()) => return Ok(None),
            (Self::Fault(fault), _, Some(part)) if fault.contains(part.as_str()) => return Ok(None),
            (_, Some(part), _) => vec![format!("settings refused: ..{part}..")],
            (_, _, Some(part)) => vec![format!("fault: ..{part}..")],
            _ => expected(case, question)?,
        };
        let got = self.lines();
        Ok((wanted != got).then(|| difference(&wanted, &got)))
    }
}

/// Lines that both have are shown for orientation.
pub(super) fn difference(wanted: &[String], got: &[String]) -> String {
    let mut text = String::new();
    for line in wanted {
        let mark = if got.contains(line) { ' ' } else { '-' };
        let _ = writeln!(text, "{mark} {line}");
    }
    for line in got.iter().filter(|line| !wanted.contains(line)) {
        let _ = writeln!(text, "+ {line}");
    }
    if !text.lines().any(|line| line.starts_with(['-', '+'])) {
        let _ = writeln!(text, "in another order: {}", got.join(" | "));
    }
    text
}

fn expected(case: &Case, question: Question) -> Result<Vec<String>, String> {
    let Expect { pass, forward, respond, edits, endpoint, hash, none, stop, again, elsewhere, refuse, .. } =
        &case.expect;
    if question == Question::Forwarding {
        let mut wanted = identity(case)?;
        if let Some(elements) = &case.expect.elements {
            wanted.elements = chain("expect.elements", elements)?;
        }
        if let Some(named) = &case.expect.families {
            wanted.families = families(named);
        }
        return Ok(of_identity(&wanted));
    }
    let mut lines = Vec::new();
    if pass.is_some() {
        lines.push("pass".to_owned());
    } else if let Some(cluster) = forward {
        lines.push(format!("forward {cluster}"));
    } else if let Some(response) = respond {
        lines.push(format!("respond {}", response.status));
        for (name, values) in &response.headers {
            lines.extend(values.iter().map(|value| format!("field {name}: {value}")));
        }
        lines.push(format!("body {:?}", response.body));
    } else if let Some(index) = endpoint {
        lines.push(format!("endpoint {index}"));
    } else if let Some(key) = hash {
        lines.push(format!("hash {:#018x}", key.0));
    } else if none.is_some() {
        lines.push("none".to_owned());
    } else if refuse.is_some() {
        lines.push("refuse".to_owned());
    } else if stop.is_some() {
        lines.push("stop".to_owned());
    } else if let Some(pause) = again {
        lines.push(format!("again {:?}", pause.0));
    } else if let Some(pause) = elsewhere {
        lines.push(format!("elsewhere {:?}", pause.0));
    }
    if let Some(edits) = edits {
        lines.extend(expected_edits(edits));
    }
    Ok(lines)
}

fn expected_edits(edits: &Edits) -> Vec<String> {
    let Edits { path, query, authority, headers, response_headers, timeout, attempt_timeout, buffering, notes } = edits;
    let mut lines = Vec::new();
    lines.extend(path.iter().map(|path| format!("path {path}")));
    lines.extend(query.iter().map(|query| format!("query {query}")));
    lines.extend(authority.iter().map(|authority| format!("authority {authority}")));
    lines.extend(headers.iter().map(|edit| format!("request field: {edit}")));
    lines.extend(response_headers.iter().map(|edit| format!("response field: {edit}")));
    lines.extend(timeout.iter().map(|time| format!("timeout {:?}", time.0)));
    lines.extend(attempt_timeout.iter().map(|time| format!("attempt timeout {:?}", time.0)));
    lines.extend(buffering.iter().map(|mode| format!("buffering {mode}")));
    lines.extend(notes.iter().map(|(name, value)| format!("note {name}: {value}")));
    lines
}

pub(super) fn of_route(answer: &RouteAnswer, edits: &RequestEdits) -> Vec<String> {
    let mut lines = match answer {
        RouteAnswer::Pass => vec!["pass".to_owned()],
        RouteAnswer::Forward(cluster) => vec![format!("forward {cluster}")],
        // Edits count for what is forwarded.
        RouteAnswer::Respond(response) => return of_response(response),
    };
    let RequestEdits { path, query, authority, headers, response_headers, timeout, attempt_timeout, buffering, notes } =
        edits;
    lines.extend(path.iter().map(|path| format!("path {path}")));
    lines.extend(query.iter().map(|query| format!("query {}", query.as_deref().unwrap_or_default())));
    lines.extend(authority.iter().map(|authority| format!("authority {authority}")));
    lines.extend(of_fields("request", headers));
    lines.extend(of_fields("response", response_headers));
    lines.extend(timeout.iter().map(|time| format!("timeout {time:?}")));
    lines.extend(attempt_timeout.iter().map(|time| format!("attempt timeout {time:?}")));
    lines.extend(buffering.iter().map(|mode| match mode {
        Buffering::Stream => "buffering stream".to_owned(),
        Buffering::Request => "buffering request".to_owned(),
        Buffering::Both => "buffering both".to_owned(),
    }));
    // The last of a name counts, and their order does not.
    let notes: std::collections::BTreeMap<_, _> = notes.iter().map(|(name, value)| (name, value)).collect();
    lines.extend(notes.iter().map(|(name, value)| format!("note {name}: {value}")));
    lines
}

fn of_fields<'a>(whose: &'a str, edits: &'a HeaderEdits) -> impl Iterator<Item = String> + 'a {
    edits.iter().map(move |edit| match edit {
        HeaderEdit::Set(name, value) => format!("{whose} field: set {name}: {}", words(value.as_bytes())),
        HeaderEdit::Append(name, value) => format!("{whose} field: append {name}: {}", words(value.as_bytes())),
        HeaderEdit::Remove(name) => format!("{whose} field: remove {name}"),
    })
}

fn of_response(response: &DirectResponse) -> Vec<String> {
    let mut lines = vec![format!("respond {}", response.status.as_u16())];
    lines.extend(in_order(&response.headers));
    lines.push(format!("body {:?}", words(&response.body)));
    lines
}

/// Fields by name, as a table of the file has them; those of one name as they came.
fn in_order(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<_> = headers.keys().collect();
    names.sort_by_key(|name| name.as_str());
    let of_name =
        |name| headers.get_all(name).iter().map(move |value| format!("field {name}: {}", words(value.as_bytes())));
    names.into_iter().flat_map(of_name).collect()
}

pub(super) fn of_choice(choice: Choice) -> Vec<String> {
    vec![match choice {
        Choice::Pass => "pass".to_owned(),
        Choice::Endpoint(index) => format!("endpoint {index}"),
        Choice::Hash(key) => format!("hash {key:#018x}"),
        Choice::None => "none".to_owned(),
    }]
}

pub(super) fn of_identity(identity: &Identity) -> Vec<String> {
    let Families { forwarded, x_forwarded, x_real_ip } = identity.families;
    let named = [(forwarded, "forwarded"), (x_forwarded, "x-forwarded"), (x_real_ip, "x-real-ip")];
    let named: Vec<_> = named.into_iter().filter(|(sent, _)| *sent).map(|(_, name)| name).collect();
    vec![format!("elements {}", render_forwarded(&identity.elements)), format!("families {}", named.join(", "))]
}

pub(super) fn of_verdict(verdict: Verdict) -> Vec<String> {
    vec![match verdict {
        Verdict::Stop => "stop".to_owned(),
        Verdict::Again(pause) => format!("again {pause:?}"),
        Verdict::Elsewhere(pause) => format!("elsewhere {pause:?}"),
    }]
}

pub(super) fn of_tunnel(answer: &TunnelAnswer) -> Vec<String> {
    vec![match answer {
        TunnelAnswer::Pass => "pass".to_owned(),
        TunnelAnswer::Forward(cluster) => format!("forward {cluster}"),
        TunnelAnswer::Refuse => "refuse".to_owned(),
    }]
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CaseFile;

    fn case(expect: &str) -> Case {
        let text = format!("question = \"router\"\n[[case]]\nname = \"a\"\nexpect = {expect}\n");
        let file: CaseFile = toml::from_str(&text).expect("a case");
        file.cases.into_iter().next().expect("one case")
    }

    #[test]
    fn every_edit_counts() {
        let mut edits = RequestEdits::default();
        edits.headers.set("x-a", b"1").expect("an edit");
        edits.headers.remove("x-b").expect("an edit");
        edits.set_query(None).expect("an edit");
        edits.timeout = Some(std::time::Duration::from_secs(2));
        edits.set_note("n".into(), "old".into()).expect("a note");
        edits.set_note("n".into(), "new".into()).expect("a note");
        let got = Outcome::Answer(of_route(&RouteAnswer::Forward("c".into()), &edits));
        let right = case(
            "{ forward = \"c\", edits = { headers = [\"set x-a: 1\", \"remove x-b\"], query = \"\", timeout = \"2s\", notes = { n = \"new\" } } }",
        );
        assert_eq!(got.differs(&right, Question::Router), Ok(None));
        let fewer = case("{ forward = \"c\", edits = { headers = [\"set x-a: 1\"], query = \"\" } }");
        let shown = got.differs(&fewer, Question::Router).expect("a case").expect("it differs");
        assert!(shown.contains("+ request field: remove x-b") && shown.contains("+ timeout 2s"), "{shown}");
        let bare = case("{ forward = \"d\" }");
        let shown = got.differs(&bare, Question::Router).expect("a case").expect("it differs");
        assert!(shown.contains("- forward d") && shown.contains("+ forward c"), "{shown}");
    }

    #[test]
    fn refusals_and_faults_are_known_by_a_part() {
        let refused = Outcome::Refused("tenants: missing".to_owned());
        assert_eq!(refused.differs(&case("{ refused = \"tenants\" }"), Question::Router), Ok(None));
        assert!(refused.differs(&case("{ refused = \"other\" }"), Question::Router).is_ok_and(|shown| shown.is_some()));
        assert!(refused.differs(&case("{ fault = \"tenants\" }"), Question::Router).is_ok_and(|shown| shown.is_some()));
        assert!(refused.differs(&case("{ pass = true }"), Question::Router).is_ok_and(|shown| shown.is_some()));
        let answer = Outcome::Answer(vec!["pass".to_owned()]);
        assert!(answer.differs(&case("{ refused = \"pass\" }"), Question::Router).is_ok_and(|shown| shown.is_some()));
    }

    #[test]
    fn order_is_told_where_nothing_else_differs() {
        let lines = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(difference(&lines(&["a", "b"]), &lines(&["b", "a"])).contains("in another order: b | a"));
    }
}
