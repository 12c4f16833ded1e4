//! What was pulled, on disk: blobs by their digest, and the versions that served, by whatever the caller calls their use.
//!
//! Files are this user's alone and appear whole, by a rename. What is read is checked against its digest, so a damaged
//! file is as good as none. Several processes may share a store: what they change together they change under a lock.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::signature::Signature;

/// A folder with blobs and records.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// Bytes of blobs.
    limit: u64,
}

/// A version of an artifact, with all that is needed to check it again without its registry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    pub manifest: Digest,
    pub(crate) manifest_bytes: Vec<u8>,
    pub component: Digest,
    pub(crate) signatures: Vec<Signature>,
}

/// Versions that a record remembers: where the newest turns out to be bad there is one before it.
const REMEMBERED: usize = 3;
/// Changes take milliseconds; whoever holds the lock for longer hangs.
const LOCK: Duration = Duration::from_secs(5);
/// A part of a file that nobody finishes.
const ABANDONED: Duration = Duration::from_secs(3600);

#[derive(Deserialize, Serialize)]
struct Record {
    /// For people who look.
    used_as: String,
    /// The newest first.
    versions: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    manifest: Digest,
    component: Digest,
    /// Base64, like the payloads: digests are of bytes.
    content: String,
    signatures: Vec<(String, String)>,
}

impl Entry {
    fn of(version: &Version) -> Self {
        let signatures = version.signatures.iter();
        Self {
            manifest: version.manifest,
            component: version.component,
            content: BASE64.encode(&version.manifest_bytes),
            signatures: signatures.map(|one| (BASE64.encode(&one.payload), one.signature.clone())).collect(),
        }
    }

    fn version(&self) -> Option<Version> {
        let mut signatures = Vec::new();
        for (payload, signature) in &self.signatures {
            signatures.push(Signature { payload: BASE64.decode(payload).ok()?, signature: signature.clone() });
        }
        let manifest_bytes = BASE64.decode(&self.content).ok()?;
        Some(Version { manifest: self.manifest, manifest_bytes, component: self.component, signatures })
    }
}

impl Store {
    /// Makes the folder where it is not there. `limit` is in bytes; what served last stays whatever it is.
    ///
    /// # Errors
    /// It cannot be made, or others may write to it.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, Error> {
        let store = Self { folder: folder.to_owned(), limit };
        store.prepare().map_err(|source| store.failed(source))?;
        Ok(store)
    }

    fn prepare(&self) -> io::Result<()> {
        for folder in [self.blobs(), self.records()] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let us = rustix::process::geteuid().as_raw();
        for folder in [&self.folder, &self.blobs(), &self.records()] {
            let meta = fs::metadata(folder)?;
            if meta.uid() != us || meta.mode() & 0o022 != 0 {
                let why = format!("{} belongs to another user, or others may write to it", folder.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
        }
        Ok(())
    }

    fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    fn records(&self) -> PathBuf {
        self.folder.join("served")
    }

    fn blob_file(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Named by a digest: a use may be called anything.
    fn record_file(&self, used_as: &str) -> PathBuf {
        self.records().join(Digest::of(used_as.as_bytes()).hex())
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Store { path: self.folder.display().to_string(), source }
    }

    /// A blob that is there and whole.
    pub(crate) fn blob(&self, digest: Digest) -> Option<Bytes> {
        let file = self.blob_file(digest);
        let bytes = fs::read(&file).ok()?;
        if Digest::of(&bytes) != digest {
            tracing::warn!(file = %file.display(), "a kept component is damaged: it is not used");
            // It will be fetched again where that is possible.
            let _ = fs::remove_file(&file);
            return None;
        }
        touch(&file);
        Some(bytes.into())
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        let file = self.blob_file(digest);
        // One that is damaged is replaced.
        if fs::read(&file).is_ok_and(|there| there == bytes) {
            touch(&file);
        } else {
            write(&file, bytes).map_err(|source| self.failed(source))?;
        }
        Ok(digest)
    }

    /// The versions that served as this, the newest first. What cannot be read counts as none.
    pub fn served(&self, used_as: &str) -> Vec<Version> {
        let record = self.record(used_as);
        record.into_iter().flat_map(|record| record.versions).filter_map(|entry| entry.version()).collect()
    }

    fn record(&self, used_as: &str) -> Option<Record> {
        let text = fs::read(self.record_file(used_as)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.used_as == used_as).then_some(record)
    }

    /// Remembers that a version served, and removes what is too much: blobs that no record names, those first that were
    /// not used for longest.
    pub fn keep(&self, used_as: &str, version: &Version, component: &[u8]) -> Result<(), Error> {
        let _lock = self.lock()?;
        self.put(component)?;
        let old = self.record(used_as).map(|record| record.versions).unwrap_or_default();
        if old.first().and_then(Entry::version).as_ref() != Some(version) {
            let mut versions = vec![Entry::of(version)];
            versions.extend(old.into_iter().filter(|entry| entry.manifest != version.manifest));
            versions.truncate(REMEMBERED);
            let record = Record { used_as: used_as.to_owned(), versions };
            let text = serde_json::to_vec_pretty(&record).expect("a record has text keys only");
            write(&self.record_file(used_as), &text).map_err(|source| self.failed(source))?;
        }
        self.prune().map_err(|source| self.failed(source))
    }

    fn lock(&self) -> Result<File, Error> {
        let attempt = || {
            let file = self.folder.join("lock");
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(file)?;
            let begun = Instant::now();
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(file),
                    Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(TryLockError::WouldBlock) => {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"));
                    }
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
        };
        attempt().map_err(|source| self.failed(source))
    }

    fn prune(&self) -> io::Result<()> {
        let mut blobs = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(self.blobs())?.chain(fs::read_dir(self.records())?) {
            // Gone meanwhile.
            let Ok((entry, meta)) = entry.and_then(|entry| entry.metadata().map(|meta| (entry, meta))) else {
                continue;
            };
            let (path, used) = (entry.path(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH));
            let name = entry.file_name();
            match name.to_str().and_then(Digest::from_hex) {
                Some(digest) if path.parent() == Some(&self.blobs()) => {
                    total += meta.len();
                    blobs.push((used, digest, meta.len(), path));
                }
                Some(_) => {}
                None if used.elapsed().is_ok_and(|age| age > ABANDONED) => fs::remove_file(path)?,
                None => {}
            }
        }
        if total <= self.limit {
            return Ok(());
        }
        let named = self.named()?;
        blobs.sort();
        for (_, digest, size, path) in blobs {
            if total > self.limit && !named.contains(&digest) {
                fs::remove_file(path)?;
                total -= size;
            }
        }
        Ok(())
    }

    /// What records name.
    fn named(&self) -> io::Result<HashSet<Digest>> {
        let mut named = HashSet::new();
        for entry in fs::read_dir(self.records())? {
            let text = fs::read(entry?.path())?;
            // A record of a later version of this program: what it names cannot be told, and is not this one's to remove.
            if let Ok(record) = serde_json::from_slice::<Record>(&text) {
                named.extend(record.versions.iter().map(|entry| entry.component));
            }
        }
        Ok(named)
    }
}

/// Marks it as used now. What cannot be marked goes a little earlier.
fn touch(file: &Path) {
    let _ = File::options().append(true).open(file).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Beside and renamed: a reader, and whoever starts after a loss of power, sees all of it or nothing.
fn write(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = target.with_extension(format!("part-{}-{:x}", std::process::id(), fastrand::u64(..)));
    let mut part = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = part.write_all(bytes).and_then(|()| part.sync_all()).and_then(|()| fs::rename(&beside, target));
    written.inspect_err(|_| {
        // Nothing more can be done about a part that stays.
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Layout, Manifest};
    use crate::reference::Reference;
    use crate::revoked::Revoked;
    use crate::{Component, Kind};

    fn version(component: &[u8]) -> Version {
        let (manifest, _) = Manifest::of_component(Layout::Wasm, component);
        let manifest_bytes = manifest.to_bytes();
        let signatures = vec![Signature { payload: b"{}".to_vec(), signature: "AA==".to_owned() }];
        let manifest = Digest::of(&manifest_bytes);
        Version { manifest, manifest_bytes, component: Digest::of(component), signatures }
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn what_served_is_found_again_and_checked_again() {
        let folder = folder();
        let open = || Store::open(&folder.path().join("store"), 1 << 20).expect("a store");
        assert_eq!(open().served("p"), []);
        let versions: Vec<Version> = [b"1", b"2", b"3", b"4"].iter().map(|bytes| version(*bytes)).collect();
        for (version, bytes) in versions.iter().zip([b"1", b"2", b"3", b"4"]) {
            open().keep("p", version, bytes).expect("kept");
        }
        assert_eq!(open().served("p"), [versions[3].clone(), versions[2].clone(), versions[1].clone()]);
        open().keep("p", &versions[2], b"3").expect("kept");
        assert_eq!(open().served("p")[0], versions[2]);
        assert_eq!(open().served("q"), []);
        let reference: Reference = "r.example/p:1".parse().expect("a reference");
        let kept = |revoked: &Revoked| Component::kept(&open(), &reference, &versions[2], None, revoked);
        assert_eq!(kept(&Revoked::default()).expect("kept").bytes, "3");
        let file = folder.path().join("revoked");
        for digest in [versions[2].manifest, versions[2].component] {
            fs::write(&file, digest.to_string()).expect("written");
            assert_eq!(kept(&Revoked::read(&file).expect("a list")).expect_err("revoked").kind(), Kind::Revoked);
        }
        fs::write(open().blob_file(versions[2].component), "other").expect("written");
        assert_eq!(kept(&Revoked::default()).expect_err("damaged").kind(), Kind::Missing);
        let mut forged = versions[3].clone();
        forged.manifest_bytes = versions[1].manifest_bytes.clone();
        let error = Component::kept(&open(), &reference, &forged, None, &Revoked::default()).expect_err("forged");
        assert_eq!(error.kind(), Kind::Damaged);
    }

    #[test]
    fn files_are_ours_alone_and_strangers_folders_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder();
        let path = folder.path().join("store");
        let store = Store::open(&path, 100).expect("a store");
        let digest = store.put(b"x").expect("kept");
        store.keep("p", &version(b"x"), b"x").expect("kept");
        for file in [store.blob_file(digest), store.record_file("p"), path.join("lock")] {
            assert_eq!(fs::metadata(&file).expect("a file").mode() & 0o777, 0o600, "{}", file.display());
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("set");
        assert!(Store::open(&path, 100).expect_err("open to all").to_string().contains("others may write"));
    }

    #[test]
    fn beyond_the_limit_what_nobody_names_goes_oldest_first() {
        let folder = folder();
        let store = Store::open(folder.path(), 30).expect("a store");
        let put = |byte: u8, age: u64| {
            let digest = store.put(&[byte; 10]).expect("kept");
            let file = File::options().append(true).open(store.blob_file(digest)).expect("a file");
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("set");
            digest
        };
        let (old, older, oldest) = (put(1, 100), put(2, 200), put(3, 300));
        store.keep("p", &version(&[3; 10]), &[3; 10]).expect("kept");
        let there = |digest| store.blob_file(digest).exists();
        assert!(there(old) && there(older) && there(oldest), "30 bytes are within the limit");
        let abandoned = store.blobs().join("x.part-1-2");
        fs::write(&abandoned, "x").expect("written");
        let file = File::options().append(true).open(&abandoned).expect("a file");
        file.set_modified(SystemTime::now() - 2 * ABANDONED).expect("set");
        put(3, 400);
        store.keep("q", &version(&[4; 10]), &[4; 10]).expect("kept");
        assert!(there(old) && !there(older), "the one that nobody used for longer goes");
        assert!(there(oldest), "a record names it, however old it is");
        assert!(!abandoned.exists());
    }

    #[test]
    fn processes_that_keep_at_once_lose_nothing() {
        let folder = folder();
        let threads: Vec<_> = (0..8_u8)
            .map(|index| {
                let store = Store::open(folder.path(), 1000).expect("a store");
                std::thread::spawn(move || {
                    for round in 0..5 {
                        let bytes = [index, round];
                        store.keep(&format!("p{}", index % 2), &version(&bytes), &bytes).expect("kept");
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let store = Store::open(folder.path(), 1000).expect("a store");
        for name in ["p0", "p1"] {
            let served = store.served(name);
            assert_eq!(served.len(), REMEMBERED);
            assert!(served.iter().all(|version| store.blob(version.component).is_some()));
        }
    }
}
