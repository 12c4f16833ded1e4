//! What a registry asks of its callers: nothing, a name and password, or a token of its token server.
//!
//! A 401 names the schemes (RFC 9110, section 11.6.1); a token is asked for as in Docker's "Token authentication".

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};

use super::Client;
use super::transport::{Answer, Ask, Url, escape};
use crate::credentials::Login;
use crate::error::Error;
use crate::reference::Reference;

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Access {
    Pull,
    Push,
}

impl Access {
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

const MAX_TOKEN: u64 = 1 << 18;

impl Client {
    /// Sends it, with what authorises the caller where the registry asks for that.
    pub(super) async fn ask(
        &self,
        reference: &Reference,
        access: Access,
        what: &str,
        mut ask: Ask,
    ) -> Result<Answer, Error> {
        let key = format!("{} {}", reference.name(), access.actions());
        // Only the registry itself is to see it, also where an upload leads elsewhere.
        let home = self.url(reference, "")?;
        let at_home = ask.url.authority() == home.authority();
        ask.authorization = self.known(&key).filter(|_| at_home);
        let first = self.send(what, &ask).await?;
        if first.status != StatusCode::UNAUTHORIZED || !at_home {
            return Ok(first);
        }
        let denied = |answer: &Answer| Error::Denied { what: what.to_owned(), detail: answer.detail() };
        let Some(authorization) = self.authorise(reference, access, what, &first).await? else {
            return Err(denied(&first));
        };
        ask.authorization = Some(authorization.clone());
        let second = self.send(what, &ask).await?;
        if second.status == StatusCode::UNAUTHORIZED {
            return Err(denied(&second));
        }
        self.tokens().insert(key, authorization);
        Ok(second)
    }

    fn known(&self, key: &str) -> Option<HeaderValue> {
        self.tokens().get(key).cloned()
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, HeaderValue>> {
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `None`: it wants something that is not to be had.
    async fn authorise(
        &self,
        reference: &Reference,
        access: Access,
        what: &str,
        refused: &Answer,
    ) -> Result<Option<HeaderValue>, Error> {
        let fields = refused.headers.get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<Challenge> =
            fields.iter().filter_map(|value| value.to_str().ok()).flat_map(challenges).collect();
        let login = self.options.credentials.find(reference).await?;
        let named = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        if let Some(bearer) = named("bearer") {
            return self.token(reference, access, what, bearer, login.as_ref()).await.map(Some);
        }
        match (named("basic"), login) {
            (Some(_), Some(Login::Password { name, password })) => Ok(Some(basic(&name, &password))),
            _ => Ok(None),
        }
    }

    async fn token(
        &self,
        reference: &Reference,
        access: Access,
        what: &str,
        bearer: &Challenge,
        login: Option<&Login>,
    ) -> Result<HeaderValue, Error> {
        let malformed = |why: &str| Error::Malformed { what: what.to_owned(), why: why.to_owned() };
        let realm = bearer.get("realm").ok_or_else(|| malformed("asks for a token and does not say where from"))?;
        let service = bearer.get("service").unwrap_or_default();
        let scope = format!("repository:{}:{}", reference.repository(), access.actions());
        let server = Url::parse(realm)?;
        let get = |server: Url, authorization| {
            let url = if service.is_empty() { server } else { server.with_query("service", service) };
            Ask { authorization, ..Ask::get(url.with_query("scope", &scope), MAX_TOKEN) }
        };
        let ask = match login {
            Some(Login::Identity(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "tidegate"),
                    ("service", service),
                    ("scope", &scope),
                    ("refresh_token", token),
                ];
                let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
                Ask {
                    method: Method::POST,
                    headers: vec![(header::CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned())],
                    body: Bytes::from(form.join("&")),
                    ..Ask::get(server, MAX_TOKEN)
                }
            }
            Some(Login::Password { name, password }) => get(server, Some(basic(name, password))),
            None => get(server, None),
        };
        let what = format!("a token for {}", reference.name());
        let answer = self.send(&what, &ask).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(Error::Denied { what, detail: answer.detail() });
            }
            status => return Err(Error::Status { what, status: status.as_u16(), detail: answer.detail() }),
        }
        let body: serde_json::Value =
            serde_json::from_slice(&answer.body).map_err(|_| malformed("got a token that is not JSON"))?;
        let token = ["token", "access_token"].iter().find_map(|key| body.get(key)?.as_str());
        let token = token.ok_or_else(|| malformed("got no token from its token server"))?;
        secret(format!("Bearer {token}")).ok_or_else(|| malformed("got a token that is no token"))
    }
}

fn basic(name: &str, password: &str) -> HeaderValue {
    let value = format!("Basic {}", BASE64.encode(format!("{name}:{password}")));
    secret(value).expect("base64 is a field value")
}

/// Never shown by `Debug`.
fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A scheme and its parameters.
#[derive(Debug, Eq, PartialEq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// RFC 9110, section 11.6.1: challenges and their parameters are separated by the same comma. What cannot be read ends it.
fn challenges(field: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = field;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            return found;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        if let Some(value) = spaced.strip_prefix('=')
            && let Some(challenge) = found.last_mut()
            && let Some((value, after)) = value_of(value.trim_start_matches([' ', '\t']))
        {
            challenge.parameters.push((word.to_owned(), value));
            rest = after;
        } else if spaced.starts_with('=') {
            return found;
        } else {
            found.push(Challenge { scheme: word.to_owned(), parameters: Vec::new() });
            rest = after;
        }
    }
}

fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// A token or a quoted string, and what follows.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = token(text);
        return (!word.is_empty()).then(|| (word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_challenge_makes_it_panic(field in "([A-Za-z]{1,6}|[ ,=\\t\"\\\\ü]|realm=\"x\"){0,20}") {
            challenges(&field);
        }
    }

    #[test]
    fn challenges_as_registries_send_them() {
        let found = challenges(
            "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",scope=\"repository:a/b:pull,push\"",
        );
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].get("realm"), Some("https://auth.example/token"));
        assert_eq!(found[0].get("Scope"), Some("repository:a/b:pull,push"));
        let found = challenges("Negotiate, Basic realm = \"say \\\"x\\\"\" , charset=UTF-8,Bearer realm=\"y\"");
        let schemes: Vec<&str> = found.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["Negotiate", "Basic", "Bearer"]);
        assert_eq!((found[1].get("realm"), found[1].get("charset")), (Some("say \"x\""), Some("UTF-8")));
        for (junk, number) in [("", 0), (",,", 0), ("=", 0), ("a=b", 0), ("Bearer realm=\"open", 1), ("ü", 0)] {
            assert_eq!(challenges(junk).len(), number, "{junk}");
        }
    }
}
