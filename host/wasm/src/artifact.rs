//! From bytes to machine code, by way of a cache on disk.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::reexport::{self, reexported};

/// SHA-256 of a component's bytes.
pub(crate) type ComponentDigest = [u8; 32];

/// The bytes of a component and their digest, taken once.
#[derive(Clone)]
pub struct Binary {
    bytes: Arc<[u8]>,
    pub(crate) digest: ComponentDigest,
}

impl Binary {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Into<Arc<[u8]>>> From<T> for Binary {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        Self { digest: Sha256::digest(&bytes).into(), bytes }
    }
}

impl std::fmt::Debug for Binary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, sha256:{}", self.bytes.len(), hex(&self.digest))
    }
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compiles a component, or takes what was compiled of it before by this very engine.
///
/// # Errors
/// It is no component, or one that the engine does not take.
pub fn component(engine: &Engine, binary: &Binary, cache: Option<&Path>) -> wasmtime::Result<Component> {
    kept(engine, binary, cache, 0, || Component::from_binary(engine, &binary.bytes))
}

/// The same in a form that is called faster, and instantiated a little slower: for one whose instances are asked often.
pub(crate) fn policy(engine: &Engine, binary: &Binary, cache: Option<&Path>) -> wasmtime::Result<Component> {
    kept(engine, binary, cache, reexport::FORM, || {
        let form = reexported(&binary.bytes).and_then(|form| Component::from_binary(engine, &form).ok());
        form.map_or_else(|| Component::from_binary(engine, &binary.bytes), Ok)
    })
}

fn kept(
    engine: &Engine,
    binary: &Binary,
    cache: Option<&Path>,
    form: u32,
    compile: impl Fn() -> wasmtime::Result<Component>,
) -> wasmtime::Result<Component> {
    let Some(folder) = cache else { return compile() };
    let file = folder.join(format!("{}-{:016x}.cwasm", hex(&binary.digest), compatibility(engine, form)));
    if let Some(component) = cached(engine, &file) {
        return Ok(component);
    }
    let component = compile()?;
    if let Err(error) = store(folder, &file, &component) {
        tracing::warn!(file = %file.display(), %error, "cannot keep a compiled plugin");
    }
    Ok(component)
}

/// Of the compiler's version, target and settings, and of what is made of a component before: other code is never loaded.
fn compatibility(engine: &Engine, form: u32) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    form.hash(&mut hasher);
    hasher.finish()
}

/// A file that is not ours, or not whole, is passed over.
fn cached(engine: &Engine, file: &Path) -> Option<Component> {
    let sum = fs::read(sum_file(file)).ok()?;
    if !owned_by_us(file) {
        return None;
    }
    let code = fs::read(file).ok()?;
    if Sha256::digest(&code)[..] != sum[..] {
        tracing::warn!(file = %file.display(), "a cached plugin is damaged: compiling it again");
        return None;
    }
    // SAFETY: deserialising trusts its input to be wasmtime's own output. The file is in a folder that only this user
    // may write to, belongs to this user, is named by the digest of the component and the engine, and its content has
    // the digest noted when this program wrote it; wasmtime itself refuses other versions and settings.
    unsafe { Component::deserialize(engine, &code) }.ok()
}

fn sum_file(file: &Path) -> PathBuf {
    file.with_extension("sha256")
}

#[cfg(unix)]
fn owned_by_us(file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let us = rustix::process::geteuid().as_raw();
    let ours = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == us && meta.mode() & 0o022 == 0);
    ours(file) && file.parent().is_some_and(ours)
}

fn store(folder: &Path, file: &Path, component: &Component) -> wasmtime::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let code = component.serialize()?;
    // Beside and renamed: a reader sees all of it or nothing.
    let write = |target: &Path, bytes: &[u8]| -> std::io::Result<()> {
        let beside = target.with_extension(format!("part-{}-{:x}", std::process::id(), fastrand::u64(..)));
        let mut part = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        part.write_all(bytes).and_then(|()| fs::rename(&beside, target)).inspect_err(|_| {
            // Nothing more can be done about a part that stays.
            let _ = fs::remove_file(&beside);
        })
    };
    write(file, &code)?;
    write(&sum_file(file), &Sha256::digest(&code))?;
    Ok(())
}
