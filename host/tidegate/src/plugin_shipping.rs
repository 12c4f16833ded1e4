//! `tidegate plugin push`, `pull`, `sign`, `verify` and `keygen`: plugins to registries and back, by hand.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use tidegate_registry::{
    Client, Component, Credentials, Layout as RegistryLayout, Options, PlainHttp, PublicKey, Reference, Revoked,
    Signature, SigningKey, Verifier,
};

use crate::{cli, shipping};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Push a component to a registry; prints the reference by digest
    Push {
        /// The component
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where to, as in oci://registry.example.com/team/router:1.2
        #[arg(value_name = "REFERENCE")]
        reference: Reference,
        /// How it is laid out
        #[arg(long, value_enum, default_value_t = Layout::Wasm)]
        layout: Layout,
        #[command(flatten)]
        registry: Registry,
    },
    /// Pull a component from a registry; prints its digest
    Pull {
        /// What, by tag or digest
        #[arg(value_name = "REFERENCE")]
        reference: Reference,
        /// Where it is written to
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// PEM file of a public key that must have signed it; may be repeated: any of them
        #[arg(long = "key", value_name = "FILE")]
        keys: Vec<PathBuf>,
        #[command(flatten)]
        registry: Registry,
    },
    /// Sign what a reference means now; the signature is pushed beside it
    Sign {
        /// What, best by digest
        #[arg(value_name = "REFERENCE")]
        reference: Reference,
        /// PEM file of a private key; the password of a locked one is read from COSIGN_PASSWORD
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        #[command(flatten)]
        registry: Registry,
    },
    /// Check who signed what a reference means now
    Verify {
        /// What, by tag or digest
        #[arg(value_name = "REFERENCE")]
        reference: Reference,
        /// PEM file of a public key; may be repeated
        #[arg(long = "key", value_name = "FILE", required = true)]
        keys: Vec<PathBuf>,
        /// Each of the keys must have signed, not any
        #[arg(long)]
        all: bool,
        /// HOST/REPOSITORY that was signed, where this is a copy
        #[arg(long, value_name = "NAME")]
        signed_as: Option<String>,
        #[command(flatten)]
        registry: Registry,
    },
    /// Make a pair of keys: NAME.key to sign with, NAME.pub to verify with
    Keygen {
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
}

/// How the registry is spoken to.
#[derive(Args)]
pub(crate) struct Registry {
    /// A registry that is spoken to without TLS: HOST, HOST:PORT or loopback; may be repeated
    #[arg(long, value_name = "HOST", default_value = PlainHttp::LOOPBACK)]
    plain_http: Vec<String>,
    /// File of roots, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Seconds that all of it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..86_400))]
    timeout: u64,
}

/// As registries know it.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Layout {
    /// The CNCF's Wasm OCI artifact: application/wasm
    Wasm,
    /// The one before it: application/vnd.wasm.content.layer.v1+wasm
    Older,
    /// An artifactType, and no configuration
    Artifact,
}

impl Registry {
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Options {
            tls: shipping::tls(self.ca.as_deref())?,
            plain_http: PlainHttp::new(self.plain_http.clone()).context("--plain-http")?,
            credentials: Credentials::usual(),
            step: Options::STEP,
            max_component: Options::MAX_COMPONENT,
        }))
    }

    /// Runs to the end, or to the deadline.
    pub(crate) fn run<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let limit = Duration::from_secs(self.timeout);
        let done = shipping::block_on(async { tokio::time::timeout(limit, work).await })?;
        done.with_context(|| format!("not done within {} s; see --timeout", self.timeout))?
    }
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Push { file, reference, layout, registry } => push(&file, &reference, layout, &registry)?,
            Self::Pull { reference, output, keys, registry } => pull(&reference, &output, &keys, &registry)?,
            Self::Sign { reference, key, registry } => sign(&reference, &key, &registry)?,
            Self::Verify { reference, keys, all, signed_as, registry } => {
                verify(&reference, verifier(&keys, all, signed_as)?, &registry)?;
            }
            Self::Keygen { name } => keygen(&name)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn push(file: &Path, reference: &Reference, layout: Layout, registry: &Registry) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    tidegate_wasm::check_component(&bytes).with_context(|| format!("{} is not pushed", file.display()))?;
    let layout = match layout {
        Layout::Wasm => RegistryLayout::Wasm,
        Layout::Older => RegistryLayout::Older,
        Layout::Artifact => RegistryLayout::Artifact,
    };
    let client = registry.client()?;
    let digest = registry.run(async { Ok(client.push(reference, bytes.into(), layout).await?) })?;
    cli::say(&format!("{}{}@{digest}\n", Reference::SCHEME, reference.name()))?;
    Ok(())
}

fn pull(reference: &Reference, output: &Path, keys: &[PathBuf], registry: &Registry) -> anyhow::Result<()> {
    let verifier = if keys.is_empty() { None } else { Some(verifier(keys, false, None)?) };
    let client = registry.client()?;
    let revoked = Revoked::default();
    let fetched = async { Ok(Component::fetch(&client, None, reference, verifier.as_ref(), &revoked).await?) };
    let component = registry.run(fetched)?;
    // Beside and renamed: what is there stays whole where the disk is full.
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        use std::os::unix::fs::PermissionsExt;
        file.write_all(&component.bytes)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.persist(output).map_err(|error| error.error)
    });
    written.with_context(|| format!("cannot write {}", output.display()))?;
    cli::say(&format!("{}\n", component.version.manifest))?;
    Ok(())
}

fn sign(reference: &Reference, key: &Path, registry: &Registry) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(key).with_context(|| format!("cannot read {}", key.display()))?;
    let password = std::env::var("COSIGN_PASSWORD").ok();
    let signing = SigningKey::from_pem(&text, password.as_deref()).with_context(|| key.display().to_string())?;
    let client = registry.client()?;
    let own = vec![(key.display().to_string(), signing.public_key()?)];
    let own = Verifier { keys: own, all: false, signed_as: None };
    let digest = registry.run(async {
        let digest = client.resolve(reference).await?;
        // Once is enough: whoever verifies reads a bounded number.
        let there = client.signatures(reference, digest).await?;
        if own.verify(reference, digest, &there).is_err() {
            let signature = Signature::new(&signing, &reference.name(), digest)?;
            client.push_signature(reference, digest, signature).await?;
        }
        Ok(digest)
    })?;
    cli::say(&format!("signed {}{}@{digest}\n", Reference::SCHEME, reference.name()))?;
    Ok(())
}

fn verify(reference: &Reference, verifier: Verifier, registry: &Registry) -> anyhow::Result<()> {
    let client = registry.client()?;
    let (digest, signatures) = registry.run(async {
        let digest = client.resolve(reference).await?;
        Ok((digest, client.signatures(reference, digest).await?))
    })?;
    let names = verifier.verify(reference, digest, &signatures)?;
    cli::say(&format!("{}{}@{digest} is signed by {}\n", Reference::SCHEME, reference.name(), names.join(" and ")))?;
    Ok(())
}

fn verifier(files: &[PathBuf], all: bool, signed_as: Option<String>) -> anyhow::Result<Verifier> {
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let key = PublicKey::from_pem(&text).with_context(|| file.display().to_string())?;
        keys.push((file.display().to_string(), key));
    }
    Ok(Verifier { keys, all, signed_as })
}

fn keygen(name: &Path) -> anyhow::Result<()> {
    let key = SigningKey::generate()?;
    let named = |ending: &str| {
        let mut file = name.as_os_str().to_owned();
        file.push(ending);
        PathBuf::from(file)
    };
    let (private, public) = (named(".key"), named(".pub"));
    let texts = [(&private, key.to_pem()?, 0o600), (&public, key.public_key()?.to_pem(), 0o644)];
    for (file, text, mode) in texts {
        // A key that is there may be the only one of its kind.
        let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
        let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", file.display()))?;
    }
    cli::say(&format!("{}\n{}\n", private.display(), public.display()))?;
    Ok(())
}
