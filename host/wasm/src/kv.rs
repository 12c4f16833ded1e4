//! Bytes under keys that outlive a question and an instance: one store, shared by all workers.
//!
//! A namespace belongs to a plugin, or to all of a tenant's that say so; nobody can name another's. It is sharded, each
//! shard under a lock of its own that is held for one operation. It is bounded in bytes, what an entry costs besides its
//! key and value included: when it is full, entries that were not used for longest make room. A guest need not know what
//! to do with a full store, and who floods it drives out only what is its own.
//!
//! Time comes from the caller, in nanoseconds.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use lru::LruCache;
use thiserror::Error;

mod journal;

use journal::Journal;

/// That a plugin may keep something, how much, and where.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct KvGrant {
    /// Of its namespace, overhead included.
    pub bytes: u64,
    /// The plugin whose namespace it is, where that is another's; `None`: its own.
    pub owner: Option<String>,
    /// One namespace for all of the tenant's plugins that say so.
    pub of_tenant: bool,
    /// A database that keeps it over restarts.
    pub persist: Option<PathBuf>,
}

/// Why a database of a store cannot be used.
#[derive(Debug, Error)]
#[error("kv_persist: {}: {why}", path.display())]
pub struct KvError {
    path: PathBuf,
    why: String,
}

/// Why a guest's operation was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    TooLarge,
    NotANumber,
}

/// Longest key in bytes, and largest value.
const MAX_KEY: usize = 512;
const MAX_VALUE: usize = 1 << 20;
/// About what an entry takes besides its key and value: a node of the list, a slot of the map, two allocations.
const OVERHEAD: usize = 128;
const SHARDS: usize = 16;
const NEVER: u64 = u64::MAX;

struct Entry {
    value: Box<[u8]>,
    expires: u64,
    /// `Namespace::turn` when it was last used.
    used: u64,
}

impl Entry {
    fn size(&self, key: &str) -> usize {
        key.len() + self.value.len() + OVERHEAD
    }
}

struct Shard {
    entries: LruCache<Box<str>, Entry>,
    /// Changed since the journal looked; of a namespace that is kept.
    changed: HashSet<Box<str>>,
}

/// The entries of a plugin, or of a tenant.
pub(crate) struct Namespace {
    name: String,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    used: AtomicUsize,
    evicted: AtomicU64,
    /// Counts the uses: shards know their own oldest, this compares them.
    turn: AtomicU64,
    persist: Option<PathBuf>,
    journal: OnceLock<Arc<Journal>>,
    has_changed: AtomicBool,
}

/// What becomes of an entry.
enum Change {
    Keep,
    Remove,
    Put(Box<[u8]>, u64),
}

impl Namespace {
    fn new(name: String, persist: Option<PathBuf>) -> Self {
        let shard = |_| Mutex::new(Shard { entries: LruCache::unbounded(), changed: HashSet::new() });
        Self {
            name,
            shards: std::array::from_fn(shard),
            hasher: RandomState::new(),
            used: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            persist,
            journal: OnceLock::new(),
            has_changed: AtomicBool::new(false),
        }
    }

    fn shard(&self, key: &str) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.hasher.hash_one(key) as usize % SHARDS])
    }

    /// Looks at a live entry, and says what becomes of it, in one step.
    fn update<T>(
        &self,
        key: &str,
        now: u64,
        change: impl FnOnce(Option<&Entry>) -> Result<(Change, T), Refused>,
    ) -> Result<T, Refused> {
        let mut shard = self.shard(key);
        let expired = shard.entries.peek(key).is_some_and(|entry| entry.expires <= now);
        if expired {
            self.remove(&mut shard, key);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let entry = shard.entries.get_mut(key);
        let (change, told) = change(entry.map(|entry| {
            entry.used = turn;
            &*entry
        }))?;
        match change {
            Change::Keep => return Ok(told),
            Change::Remove => self.remove(&mut shard, key),
            Change::Put(value, expires) => {
                let entry = Entry { value, expires, used: turn };
                self.used.fetch_add(entry.size(key), Ordering::Relaxed);
                if let Some(old) = shard.entries.put(key.into(), entry) {
                    self.used.fetch_sub(old.size(key), Ordering::Relaxed);
                }
                self.note(&mut shard, key);
            }
        }
        drop(shard);
        self.wake();
        Ok(told)
    }

    fn remove(&self, shard: &mut Shard, key: &str) {
        if let Some(old) = shard.entries.pop(key) {
            self.used.fetch_sub(old.size(key), Ordering::Relaxed);
            self.note(shard, key);
        }
    }

    fn note(&self, shard: &mut Shard, key: &str) {
        if self.persist.is_some() {
            shard.changed.insert(key.into());
            self.has_changed.store(true, Ordering::Release);
        }
    }

    fn wake(&self) {
        if self.has_changed.load(Ordering::Acquire)
            && let Some(journal) = self.journal.get()
        {
            journal.wake();
        }
    }

    /// Entries that were not used for longest go until no more than `most` bytes are in use. No two locks at once; `kept`
    /// stays.
    fn make_room(&self, most: usize, kept: &str) {
        while self.used.load(Ordering::Relaxed) > most {
            let oldest = |shard: &Mutex<Shard>| {
                lock(shard).entries.peek_lru().filter(|(key, _)| ***key != *kept).map(|(_, entry)| entry.used)
            };
            let shards = self.shards.iter().filter_map(|shard| Some((oldest(shard)?, shard)));
            let Some((_, shard)) = shards.min_by_key(|(used, _)| *used) else { return };
            let mut shard = lock(shard);
            let key = shard.entries.peek_lru().map(|(key, _)| key.clone());
            if let Some(key) = key.filter(|key| **key != *kept) {
                self.remove(&mut shard, &key);
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A plugin's view of its namespace.
pub(crate) struct Kv {
    space: Arc<Namespace>,
    most: usize,
}

impl Kv {
    pub(crate) fn used(&self) -> u64 {
        self.space.used.load(Ordering::Relaxed) as u64
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.space.evicted.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self, key: &str, now: u64) -> Option<Vec<u8>> {
        let read = |entry: Option<&Entry>| Ok((Change::Keep, entry.map(|entry| entry.value.to_vec())));
        self.space.update(key, now, read).unwrap_or_default()
    }

    /// Whether a value may be put under a key.
    fn fits(&self, key: &str, value: &[u8]) -> Result<(), Refused> {
        let fits = key.len() <= MAX_KEY && value.len() <= MAX_VALUE && key.len() + value.len() + OVERHEAD <= self.most;
        if fits { Ok(()) } else { Err(Refused::TooLarge) }
    }

    pub(crate) fn set(&self, key: &str, value: Vec<u8>, ttl: Option<u64>, now: u64) -> Result<(), Refused> {
        self.fits(key, &value)?;
        self.space.update(key, now, |_| Ok((Change::Put(value.into(), end(ttl, now)), ())))?;
        self.space.make_room(self.most, key);
        Ok(())
    }

    /// Whether there was one.
    pub(crate) fn delete(&self, key: &str, now: u64) -> bool {
        let delete = |entry: Option<&Entry>| Ok((Change::Remove, entry.is_some()));
        self.space.update(key, now, delete).unwrap_or_default()
    }

    /// Adds to a decimal number; one that is not there is nought, and `ttl` is its time from now on.
    pub(crate) fn increment(&self, key: &str, by: i64, ttl: Option<u64>, now: u64) -> Result<i64, Refused> {
        self.fits(key, &[0; 20])?;
        let sum = self.space.update(key, now, |entry| {
            let (number, expires) = match entry {
                None => (0, end(ttl, now)),
                Some(entry) => {
                    let text = std::str::from_utf8(&entry.value).ok();
                    let number = text.and_then(|text| text.parse().ok()).ok_or(Refused::NotANumber)?;
                    (number, entry.expires)
                }
            };
            let sum = i64::saturating_add(number, by);
            Ok((Change::Put(sum.to_string().into_bytes().into(), expires), sum))
        })?;
        self.space.make_room(self.most, key);
        Ok(sum)
    }

    /// Puts a value, or with none removes what is there, if what is there is `expected`; whether it was.
    pub(crate) fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        value: Option<Vec<u8>>,
        ttl: Option<u64>,
        now: u64,
    ) -> Result<bool, Refused> {
        self.fits(key, value.as_deref().unwrap_or_default())?;
        let swapped = self.space.update(key, now, |entry| {
            if entry.map(|entry| &*entry.value) != expected {
                return Ok((Change::Keep, false));
            }
            let change = value.map_or(Change::Remove, |value| Change::Put(value.into(), end(ttl, now)));
            Ok((change, true))
        })?;
        self.space.make_room(self.most, key);
        Ok(swapped)
    }
}

fn end(ttl: Option<u64>, now: u64) -> u64 {
    ttl.map_or(NEVER, |ttl| now.saturating_add(ttl))
}

/// A namespace's name, and where it is kept.
type Place = (String, Option<PathBuf>);

/// All namespaces of the process, by name and place. They are there while a plugin uses them, so that a reload keeps
/// them; those that are kept on disk, once they are open, until the process ends.
#[derive(Default)]
pub(crate) struct Stores {
    spaces: Mutex<HashMap<Place, Weak<Namespace>>>,
    journals: Mutex<HashMap<PathBuf, Arc<Journal>>>,
}

impl Stores {
    /// The namespace of a plugin. Names have no slash, so none is another's.
    pub(crate) fn open(&self, plugin: &str, tenant: Option<&str>, grant: &KvGrant) -> Kv {
        let (tenant, plugin) = (tenant.unwrap_or_default(), grant.owner.as_deref().unwrap_or(plugin));
        let name = if grant.of_tenant { format!("{tenant}/") } else { format!("{tenant}/{plugin}") };
        let mut spaces = lock(&self.spaces);
        spaces.retain(|_, space| space.strong_count() > 0);
        let known = spaces.entry((name.clone(), grant.persist.clone())).or_default();
        let space = known.upgrade().unwrap_or_else(|| Arc::new(Namespace::new(name, grant.persist.clone())));
        *known = Arc::downgrade(&space);
        Kv { space, most: usize::try_from(grant.bytes).unwrap_or(usize::MAX) }
    }

    /// Reads what is kept on disk and begins to write it. Apart from `open`, because a configuration that is only checked
    /// must not take a running gateway's databases.
    pub(crate) fn begin(&self) -> Result<(), KvError> {
        let spaces: Vec<_> = lock(&self.spaces).values().filter_map(Weak::upgrade).collect();
        for space in spaces.into_iter().filter(|space| space.journal.get().is_none()) {
            let Some(path) = &space.persist else { continue };
            let mut journals = lock(&self.journals);
            let journal = match journals.get(path) {
                Some(journal) => journal.clone(),
                None => {
                    let journal = Journal::open(path).map_err(|why| error(path, why))?;
                    journals.entry(path.clone()).or_insert(journal).clone()
                }
            };
            journal.adopt(&space).map_err(|why| error(path, why))?;
            // What was put while it was configured.
            space.wake();
        }
        Ok(())
    }

    /// Writes what is not written yet: the end of the process is near.
    pub(crate) fn finish(&self) {
        for journal in lock(&self.journals).values() {
            journal.write();
        }
    }
}

fn error(path: &Path, why: String) -> KvError {
    KvError { path: path.to_owned(), why }
}

/// Every change is whole when its lock is given back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
