//! Names and passwords from where `docker login`, `podman login` and their helpers leave them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{Error, in_a_line};
use crate::reference::Reference;

/// What a registry may be told.
#[derive(Clone, Eq, PartialEq)]
pub enum Login {
    Password {
        name: String,
        password: String,
    },
    /// A refresh token, for the registry's token server.
    Identity(String),
}

/// Secrets are not shown.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { name, .. } => write!(f, "Password({name:?})"),
            Self::Identity(_) => write!(f, "Identity"),
        }
    }
}

/// The files that are looked through, in order.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    files: Vec<PathBuf>,
    /// That they are there was promised.
    required: bool,
}

/// A keychain that waits for somebody must not hold a gateway.
const HELPER: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 64 << 10;

impl Credentials {
    /// None: what needs some is denied.
    pub fn none() -> Self {
        Self::default()
    }

    /// One file in the form of Docker's `config.json`, which must be there.
    pub fn file(path: PathBuf) -> Self {
        Self { files: vec![path], required: true }
    }

    /// `REGISTRY_AUTH_FILE`, where it is set, alone; else `containers/auth.json` in `XDG_RUNTIME_DIR`, then `config.json`
    /// in `DOCKER_CONFIG` or `~/.docker`.
    pub fn usual() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = variable("REGISTRY_AUTH_FILE") {
            return Self::file(file);
        }
        let containers = variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
        let docker = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
        let docker = docker.map(|folder| folder.join("config.json"));
        Self { files: containers.into_iter().chain(docker).collect(), required: false }
    }

    pub(crate) async fn find(&self, reference: &Reference) -> Result<Option<Login>, Error> {
        for file in &self.files {
            let wrong = |why: String| Error::Credentials {
                registry: reference.registry(),
                why: format!("{}: {why}", file.display()),
            };
            let text = match std::fs::read(file) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !self.required => continue,
                Err(error) => return Err(wrong(error.to_string())),
            };
            let config: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
            let found = match entry(&config, reference) {
                None => None,
                Some(Entry::Text(auth)) => Some(decode(auth).map_err(wrong)?),
                Some(Entry::Identity(token)) => Some(Login::Identity(token.to_owned())),
                Some(Entry::Helper { name, key }) => ask_helper(Path::new(""), name, &key).await.map_err(wrong)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// What a file says of a registry.
#[derive(Debug, Eq, PartialEq)]
enum Entry<'a> {
    /// Base64 of `NAME:PASSWORD`.
    Text(&'a str),
    Identity(&'a str),
    /// `docker-credential-NAME`, asked for `key`.
    Helper {
        name: &'a str,
        key: String,
    },
}

fn entry<'a>(config: &'a Value, reference: &Reference) -> Option<Entry<'a>> {
    let registry = reference.registry();
    // Docker's own registry is known by the address of a version of its that is long gone.
    let docker = registry == "docker.io";
    let key = if docker { "https://index.docker.io/v1/".to_owned() } else { registry.clone() };
    let text = |value: &'a Value| value.as_str().filter(|text| !text.is_empty());
    let helper = config.get("credHelpers").and_then(|helpers| helpers.get(&registry)).and_then(text);
    if let Some(name) = helper {
        return Some(Entry::Helper { name, key });
    }
    if let Some(auths) = config.get("auths").and_then(Value::as_object) {
        // containers-auth.json(5): the longest name that the repository begins with.
        let name = reference.name();
        let fits = |entry: &str| {
            let entry = bare(entry);
            let entry = if docker && entry == "index.docker.io" { "docker.io" } else { entry };
            let fits = name == entry || name.strip_prefix(entry).is_some_and(|rest| rest.starts_with('/'));
            fits.then_some(entry.len())
        };
        let best =
            auths.iter().filter_map(|(entry, value)| Some((fits(entry)?, value))).max_by_key(|(length, _)| *length);
        if let Some((_, value)) = best {
            let field = |name: &str| value.get(name).and_then(text);
            let known = field("identitytoken").map(Entry::Identity).or_else(|| field("auth").map(Entry::Text));
            if known.is_some() {
                return known;
            }
        }
    }
    config.get("credsStore").and_then(text).map(|name| Entry::Helper { name, key })
}

/// Without the scheme and the API's version that older files have.
fn bare(entry: &str) -> &str {
    let entry = entry.strip_prefix("https://").or_else(|| entry.strip_prefix("http://")).unwrap_or(entry);
    let entry = entry.trim_end_matches('/');
    entry.strip_suffix("/v1").or_else(|| entry.strip_suffix("/v2")).unwrap_or(entry)
}

fn decode(auth: &str) -> Result<Login, String> {
    let wrong = || "its auth is not the base64 of a name, a colon and a password".to_owned();
    let text = BASE64.decode(auth.trim()).map_err(|_| wrong())?;
    let text = String::from_utf8(text).map_err(|_| wrong())?;
    let (name, password) = text.split_once(':').ok_or_else(wrong)?;
    // Docker pads with it.
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Login::Password { name: name.to_owned(), password })
}

/// The protocol of docker-credential-helpers: the key on standard input, JSON on standard output. One that knows nothing
/// ends with an error and says so.
async fn ask_helper(folder: &Path, name: &str, key: &str) -> Result<Option<Login>, String> {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(format!("{name:?} is not the name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let run = async {
        let mut child = tokio::process::Command::new(folder.join(&program))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut said = Vec::new();
        if let Some(mut stdin) = stdin {
            // One that reads nothing may have an answer all the same.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        if let Some(stdout) = stdout {
            stdout.take(MAX_ANSWER).read_to_end(&mut said).await.map_err(failed)?;
        }
        let status = child.wait().await.map_err(failed)?;
        Ok::<_, String>((status.success(), said))
    };
    let (well, said) = tokio::time::timeout(HELPER, run).await.map_err(|_| format!("{program} does not answer"))??;
    if !well {
        let text = String::from_utf8_lossy(&said);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{program} fails: {:?}", in_a_line(text.trim())));
    }
    let answer: Value = serde_json::from_slice(&said).map_err(|_| format!("{program} answers no JSON"))?;
    let field = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, password) = (field("Username"), field("Secret"));
    Ok(Some(if name == "<token>" { Login::Identity(password) } else { Login::Password { name, password } }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().expect("a reference")
    }

    fn password(name: &str, password: &str) -> Login {
        Login::Password { name: name.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn the_nearest_entry_is_taken() {
        let config = json!({
            "auths": {
                "https://r.example/v2/": { "auth": "whole" },
                "r.example/team": { "auth": "team" },
                "r.example/team/router": { "identitytoken": "id", "auth": "" },
                "https://index.docker.io/v1/": { "auth": "hub" },
                "helped.example": { "auth": "file" },
                "empty.example": {},
            },
            "credHelpers": { "helped.example": "pass", "alone.example:5000": "other" },
        });
        let of = |text: &str| entry(&config, &reference(text));
        assert_eq!(of("r.example/other:1"), Some(Entry::Text("whole")));
        assert_eq!(of("r.example/teams/router:1"), Some(Entry::Text("whole")));
        assert_eq!(of("r.example/team/x:1"), Some(Entry::Text("team")));
        assert_eq!(of("r.example/team/router:1"), Some(Entry::Identity("id")));
        assert_eq!(of("docker.io/library/x:1"), Some(Entry::Text("hub")));
        assert_eq!(of("helped.example/x:1"), Some(Entry::Helper { name: "pass", key: "helped.example".to_owned() }));
        let key = "alone.example:5000".to_owned();
        assert_eq!(of("alone.example:5000/x:1"), Some(Entry::Helper { name: "other", key }));
        for nobody in ["alone.example/x:1", "empty.example/x:1", "r.example:81/x:1", "example/x:1"] {
            assert_eq!(of(nobody), None, "{nobody}");
        }
        let store = json!({ "auths": { "r.example": {} }, "credsStore": "desktop" });
        let found = entry(&store, &reference("r.example/x:1"));
        assert_eq!(found, Some(Entry::Helper { name: "desktop", key: "r.example".to_owned() }));
        assert_eq!(entry(&json!([]), &reference("r.example/x:1")), None);
    }

    #[test]
    fn names_and_passwords_are_decoded_and_not_shown() {
        let login = decode(&BASE64.encode("me:pass:word\0\0")).expect("a login");
        assert_eq!(login, password("me", "pass:word"));
        assert!(!format!("{login:?}").contains("pass"));
        for wrong in ["", "%", &BASE64.encode("nobody"), &BASE64.encode([0xff, b':'])] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn helpers_answer_within_their_time() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let helper = |name: &str, script: &str| {
            let file = folder.path().join(format!("docker-credential-{name}"));
            std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).expect("set");
        };
        helper("good", "read host; echo \"{\\\"Username\\\":\\\"$1\\\",\\\"Secret\\\":\\\"$host\\\"}\"");
        helper("token", "echo '{\"Username\":\"<token>\",\"Secret\":\"x\"}'");
        helper("unknown", "echo 'credentials not found in native keychain'; exit 1");
        helper("broken", "echo locked; exit 1");
        helper("junk", "echo junk");
        let ask = async |name: &str| ask_helper(folder.path(), name, "r.example\n").await;
        assert_eq!(ask("good").await, Ok(Some(password("get", "r.example"))));
        assert_eq!(ask("token").await, Ok(Some(Login::Identity("x".to_owned()))));
        assert_eq!(ask("unknown").await, Ok(None));
        for (name, said) in
            [("broken", "locked"), ("junk", "no JSON"), ("absent", "No such file"), ("../x", "not the name")]
        {
            let error = ask(name).await.expect_err(name);
            assert!(error.contains(said), "{error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_was_named_must_be_there_and_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("auth.json");
        let credentials = Credentials::file(file.clone());
        let wanted = reference("r.example/x:1");
        assert!(credentials.find(&wanted).await.is_err());
        let usual = Credentials { files: vec![file.clone()], required: false };
        assert_eq!(usual.find(&wanted).await.expect("no file is none"), None);
        std::fs::write(&file, "{").expect("written");
        assert!(usual.find(&wanted).await.is_err());
        let auth = BASE64.encode("me:word");
        std::fs::write(&file, json!({ "auths": { "r.example": { "auth": auth } } }).to_string()).expect("written");
        assert_eq!(credentials.find(&wanted).await.expect("found"), Some(password("me", "word")));
        assert_eq!(Credentials::none().find(&wanted).await.expect("none"), None);
    }
}
