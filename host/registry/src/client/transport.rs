//! One exchange with a server: dial, TLS, request, answer, within limits of time and size. Redirects are followed where
//! nothing was sent along.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Client;
use crate::error::{Error, in_a_line};

/// Blobs often lie elsewhere; a registry that sends further than this goes round in circles.
const MAX_REDIRECTS: usize = 5;

/// An absolute address, `http` or `https`.
#[derive(Clone, Debug)]
pub(super) struct Url(Uri);

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Malformed { what: format!("the address {text:?}"), why: why.to_owned() };
        let uri: Uri = text.parse().map_err(|_| wrong("is not one"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("is neither http nor https"));
        }
        match uri.authority() {
            Some(authority) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(Self(uri)),
            _ => Err(wrong("names no server")),
        }
    }

    /// Where `location` leads from here: an absolute address, one without a scheme, or a path.
    pub(super) fn join(&self, location: &str) -> Result<Self, Error> {
        if location.starts_with("//") {
            Self::parse(&format!("{}:{location}", self.scheme()))
        } else if location.starts_with('/') {
            Self::parse(&format!("{}://{}{location}", self.scheme(), self.authority()))
        } else {
            Self::parse(location)
        }
    }

    pub(super) fn with_scheme_of(&self, other: &Self) -> Self {
        let text = format!("{}://{}{}", other.scheme(), self.authority(), self.path_and_query());
        // The parts are those of two addresses.
        Self::parse(&text).unwrap_or_else(|_| self.clone())
    }

    pub(super) fn with_query(&self, name: &str, value: &str) -> Self {
        let joint = if self.0.query().is_some() { '&' } else { '?' };
        let text = format!("{}{joint}{name}={}", self.0, escape(value));
        Self::parse(&text).unwrap_or_else(|_| self.clone())
    }

    fn scheme(&self) -> &str {
        self.0.scheme_str().unwrap_or("https")
    }

    pub(super) fn authority(&self) -> &str {
        self.0.authority().map_or("", http::uri::Authority::as_str)
    }

    /// An IPv6 address is in brackets.
    pub(super) fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }

    fn tls(&self) -> bool {
        self.scheme() == "https"
    }

    fn path_and_query(&self) -> &str {
        self.0.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
    }
}

/// A value in a query or a form: all but RFC 3986's unreserved characters as `%XX`.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || bare(host).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) authorization: Option<header::HeaderValue>,
    pub(super) body: Bytes,
    /// Bytes that the answer's body may have.
    pub(super) limit: u64,
}

impl Ask {
    pub(super) fn get(url: Url, limit: u64) -> Self {
        Self { method: Method::GET, url, headers: Vec::new(), authorization: None, body: Bytes::new(), limit }
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the registry says is wrong, if it says so in the spec's form ("Error Codes"), in brackets.
    pub(super) fn detail(&self) -> String {
        let said = || {
            let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
            let error = body.get("errors")?.get(0)?;
            let code = error.get("code")?.as_str()?;
            let message = error.get("message").and_then(|message| message.as_str()).unwrap_or_default();
            Some(format!(" ({})", in_a_line(&format!("{code}: {message}"))))
        };
        said().unwrap_or_default()
    }
}

impl Client {
    /// Sends it, and follows redirects of what only asks. Credentials stay with the server they were meant for.
    pub(super) async fn send(&self, what: &str, ask: &Ask) -> Result<Answer, Error> {
        let mut url = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let same_server = url.authority() == ask.url.authority() && url.tls() == ask.url.tls();
            let answer = self.exchange(what, ask, &url, same_server).await?;
            let follow = answer.status.is_redirection() && matches!(ask.method, Method::GET | Method::HEAD);
            match answer.header(&header::LOCATION).filter(|_| follow) {
                None => return Ok(answer),
                Some(location) => url = url.join(location)?,
            }
        }
        Err(Error::Malformed { what: what.to_owned(), why: "leads from redirect to redirect".to_owned() })
    }

    async fn exchange(&self, what: &str, ask: &Ask, url: &Url, same_server: bool) -> Result<Answer, Error> {
        let step = self.options.step;
        let host = url.authority().to_owned();
        let failed = |error: hyper::Error| Error::Exchange { host: host.clone(), why: causes(&error) };
        let (mut sender, driver) = within(step, &format!("to connect to {host}"), self.connect(url)).await??;
        let _driver = Driver(driver);
        let mut request = Request::builder()
            .method(&ask.method)
            .uri(url.path_and_query())
            .header(header::HOST, &host)
            .header(header::USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close");
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = ask.authorization.as_ref().filter(|_| same_server) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(ask.body.clone())).map_err(|error| Error::Malformed {
            what: what.to_owned(),
            why: format!("cannot be asked for: {error}"),
        })?;
        // A large upload may take its time; the caller's deadline holds all of it.
        let sent = sender.send_request(request);
        let response = if ask.body.is_empty() {
            within(step, &format!("the answer of {host}"), sent).await?.map_err(failed)?
        } else {
            sent.await.map_err(failed)?
        };
        let (head, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = within(step, &format!("what {host} sends of {what}"), body.frame()).await? {
            let frame = frame.map_err(failed)?;
            if let Some(data) = frame.data_ref() {
                if (bytes.len() + data.len()) as u64 > ask.limit {
                    return Err(Error::TooLarge { what: what.to_owned(), limit: ask.limit });
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(Answer { status: head.status, headers: head.headers, body: bytes.freeze() })
    }

    async fn connect(&self, url: &Url) -> Result<(Sender, tokio::task::JoinHandle<()>), Error> {
        let host = url.host();
        let port = url.0.port_u16();
        let plain = !url.tls();
        if plain && !self.options.plain_http.allows(host, port) {
            return Err(Error::Plain { url: format!("http://{}", url.authority()), host: host.to_owned() });
        }
        let stream = dial(host, port.unwrap_or(if plain { 80 } else { 443 })).await?;
        if plain {
            return handshake(url, stream).await;
        }
        let tls_error = |why: String| Error::Tls { host: url.authority().to_owned(), why };
        let name = ServerName::try_from(bare(host).to_owned()).map_err(|error| tls_error(error.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.options.tls));
        let stream = connector.connect(name, stream).await.map_err(|error| tls_error(error.to_string()))?;
        handshake(url, stream).await
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn handshake<S>(url: &Url, stream: S) -> Result<(Sender, tokio::task::JoinHandle<()>), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) =
        made.map_err(|error| Error::Exchange { host: url.authority().to_owned(), why: causes(&error) })?;
    let driver = tokio::spawn(async move {
        // What goes wrong on it is told to whoever waits for the answer.
        let _ = connection.await;
    });
    Ok((sender, driver))
}

/// A connection under way ends with whoever waited for it.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, Error> {
    let failed = |why: String| Error::Connect { host: format!("{host}:{port}"), why };
    let found = tokio::net::lookup_host((bare(host), port)).await.map_err(|error| failed(error.to_string()))?;
    // Whatever the resolver makes of "localhost": what is granted to loopback stays there.
    let addresses: Vec<SocketAddr> = found.filter(|to| !is_loopback(host) || to.ip().is_loopback()).collect();
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(failed(last))
}

pub(super) async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, Error> {
    let late = |_| Error::Timeout { what: what.to_owned(), seconds: limit.as_secs().max(1) };
    timeout(limit, work).await.map_err(late)
}

/// An error and those below it, in a line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text = format!("{text}: {error}");
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_join_and_never_lose_their_server() {
        let base = Url::parse("https://registry.example:444/v2/a/blobs/uploads/").expect("an address");
        let join = |location: &str| base.join(location).map(|url| url.0.to_string()).map_err(drop);
        assert_eq!(join("/v2/x?a=1"), Ok("https://registry.example:444/v2/x?a=1".to_owned()));
        assert_eq!(join("//cdn.example/y"), Ok("https://cdn.example/y".to_owned()));
        assert_eq!(join("http://other.example/z"), Ok("http://other.example/z".to_owned()));
        for wrong in ["", "x", "ftp://a/b", "https://user:word@a/b", "https:///b", "file:///etc/passwd"] {
            assert_eq!(join(wrong), Err(()), "{wrong}");
        }
        let query = |url: &str| Url::parse(url).expect("an address").with_query("digest", "sha256:00").0.to_string();
        assert_eq!(query("http://a/b"), "http://a/b?digest=sha256%3A00");
        assert_eq!(query("http://a/b?c=d"), "http://a/b?c=d&digest=sha256%3A00");
    }

    #[test]
    fn values_are_escaped() {
        assert_eq!(
            escape("repository:a/b-c_d.e~:pull,push ü&="),
            "repository%3Aa%2Fb-c_d.e~%3Apull%2Cpush%20%C3%BC%26%3D"
        );
    }
}
