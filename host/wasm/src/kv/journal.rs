//! A database that keeps namespaces over restarts, written behind by a thread of its own.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::Thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, TableDefinition, TableError};

use super::{Entry, NEVER, Namespace, OVERHEAD, lock};
use crate::host::monotonic;

/// Namespace and key; when it ends, in milliseconds since 1970 or 0 for never, and the value.
const ENTRIES: TableDefinition<'_, (&str, &str), (u64, &[u8])> = TableDefinition::new("entries");

/// How long changes gather before they are written together.
const GATHER: Duration = Duration::from_millis(200);
/// After a write that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// When an entry ends, and its value; none if it is gone.
type Changes = HashMap<Box<str>, Option<(u64, Box<[u8]>)>>;

pub(super) struct Journal {
    database: Database,
    pub(super) spaces: Mutex<Vec<Arc<Namespace>>>,
    thread: OnceLock<Thread>,
    /// One writes at a time: the thread, or whoever ends the process.
    writing: Mutex<()>,
}

impl Journal {
    /// Opens the database, or makes it.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, String> {
        let database = Database::create(path).map_err(|error| error.to_string())?;
        let journal =
            Arc::new(Self { database, spaces: Mutex::default(), thread: OnceLock::new(), writing: Mutex::default() });
        let weak = Arc::downgrade(&journal);
        let thread = std::thread::Builder::new().name("kv".to_owned()).spawn(move || run(&weak));
        let thread = thread.map_err(|error| error.to_string())?;
        let _ = journal.thread.set(thread.thread().clone());
        Ok(journal)
    }

    /// Something has changed.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Reads what is kept of a namespace, and looks after it from now on.
    pub(super) fn adopt(self: &Arc<Self>, space: &Arc<Namespace>) -> Result<(), String> {
        self.read(space).map_err(|error| error.to_string())?;
        lock(&self.spaces).push(space.clone());
        let _ = space.journal.set(self.clone());
        Ok(())
    }

    fn read(&self, space: &Namespace) -> Result<(), redb::Error> {
        let (now, wall) = (monotonic(), wall_ms());
        let read = self.database.begin_read()?;
        let table = match read.open_table(ENTRIES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            table => table?,
        };
        for item in table.range((&*space.name, "")..)? {
            let (key, value) = item?;
            let ((of, key), (ends, value)) = (key.value(), value.value());
            if of != space.name {
                break;
            }
            let mut shard = space.shard(key);
            let left = ends.saturating_sub(wall);
            // One that was put while the plugin was configured is younger.
            if shard.entries.contains(key) {
                continue;
            }
            if ends != 0 && left == 0 {
                space.note(&mut shard, key);
                continue;
            }
            let expires = if ends == 0 { NEVER } else { now.saturating_add(left.saturating_mul(1_000_000)) };
            space.used.fetch_add(key.len() + value.len() + OVERHEAD, Ordering::Relaxed);
            shard.entries.put(key.into(), Entry { value: value.into(), expires, used: 0 });
        }
        Ok(())
    }

    /// Writes all changes so far; whether that went well.
    pub(super) fn write(&self) -> bool {
        let _one_at_a_time = lock(&self.writing);
        let spaces: Vec<_> =
            lock(&self.spaces).iter().filter(|s| s.has_changed.load(Ordering::Acquire)).cloned().collect();
        let mut fine = true;
        for space in spaces {
            space.has_changed.store(false, Ordering::Release);
            if let Err(error) = self.write_one(&space) {
                fine = false;
                tracing::error!(namespace = space.name, %error, "kv: what changed cannot be written; trying again");
            }
        }
        fine
    }

    fn write_one(&self, space: &Namespace) -> Result<(), redb::Error> {
        let (now, wall) = (monotonic(), wall_ms());
        // Copied under the locks, written without them.
        let mut changes = Changes::new();
        for shard in &space.shards {
            let mut shard = lock(shard);
            for key in std::mem::take(&mut shard.changed) {
                let value = shard.entries.peek(&*key).map(|entry| {
                    let left = entry.expires.saturating_sub(now).div_ceil(1_000_000);
                    let ends = if entry.expires == NEVER { 0 } else { wall.saturating_add(left).max(1) };
                    (ends, entry.value.clone())
                });
                changes.insert(key, value);
            }
        }
        let written = self.commit(&space.name, &changes);
        if written.is_err() {
            for key in changes.into_keys() {
                space.note(&mut space.shard(&key), &key);
            }
        }
        written
    }

    fn commit(&self, name: &str, changes: &Changes) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut table = transaction.open_table(ENTRIES)?;
        for (key, value) in changes {
            match value {
                Some((ends, value)) => drop(table.insert((name, &**key), (*ends, &**value))?),
                None => drop(table.remove((name, &**key))?),
            }
        }
        drop(table);
        transaction.commit()?;
        Ok(())
    }
}

fn run(journal: &Weak<Journal>) {
    loop {
        std::thread::park();
        std::thread::sleep(GATHER);
        let Some(journal) = journal.upgrade() else { return };
        if !journal.write() {
            std::thread::sleep(PAUSE);
            journal.wake();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.wake();
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
