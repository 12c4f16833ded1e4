//! Certificates, keys and roots on disk: noticed when they change, so that a renewal needs no signal.
//!
//! Looked at, not watched: a file may be replaced by a rename, a link to its folder may be turned (as Kubernetes does), it may
//! lie on a network. What was looked at before is compared with now: where a path leads, its size and its times.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tidegate_config::Config;

/// What a file is known by without being read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` where there is no such file now: half of a replacement.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let data = std::fs::metadata(path).ok()?;
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

/// The files of TLS that a configuration names, as they are at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TlsFiles(Vec<(PathBuf, Option<Stamp>)>);

impl TlsFiles {
    /// Taken before the files are read: what changes while they are is noticed the next time.
    pub(crate) fn of(config: &Config) -> Self {
        Self(config.tls_files().into_iter().map(|path| (path.to_owned(), Stamp::of(path))).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that differ from `before`.
    pub(crate) fn differing<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Path> {
        let known = |file: &(PathBuf, Option<Stamp>)| before.0.contains(file);
        self.0.iter().filter(move |file| !known(file)).map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_a_turned_link_and_one_that_is_gone_are_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for version in ["one", "two"] {
            std::fs::create_dir(path(version)).expect("a folder");
            std::fs::write(path(version).join("edge.pem"), version).expect("written");
        }
        std::os::unix::fs::symlink(path("one"), path("now")).expect("a link");
        let file = path("now").join("edge.pem");
        let look = || TlsFiles(vec![(file.clone(), Stamp::of(&file))]);
        let first = look();
        assert_eq!(look(), first);
        std::os::unix::fs::symlink(path("two"), path("next")).expect("a link");
        std::fs::rename(path("next"), path("now")).expect("renamed");
        let second = look();
        assert_eq!(second.differing(&first).collect::<Vec<_>>(), [file.as_path()]);
        std::fs::remove_file(&file).expect("removed");
        assert_ne!(look(), second);
    }
}
