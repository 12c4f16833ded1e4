//! Where logs go: the program's own to stderr, the access log to its writer thread.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tidegate_proxy::observe::{Record, RecordSink, TunnelRecord, access_log_line, tunnel_line};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Installs the log subscriber. `TIDEGATE_LOG` overrides the configured filter. A second call changes nothing.
pub(crate) fn install(configured: &str) {
    let text = std::env::var("TIDEGATE_LOG").unwrap_or_else(|_| configured.to_owned());
    let filter = filter(&text).unwrap_or_else(|error| {
        eprintln!("tidegate: the log filter {text:?} cannot be read: {error}; taking \"info\"");
        EnvFilter::new("info")
    });
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // Already installed: the first one stays.
    let _ = subscriber.try_init();
}

/// A filter as people write it: `info`, `warn,tidegate_proxy=debug`.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(text)
}

/// Lines that may wait for the writer before further ones are dropped: a full disk must not stop a worker.
const BACKLOG: usize = 16 * 1024;

/// The access log: workers format lines, one thread writes them.
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    pub(crate) dropped: Arc<AtomicU64>,
}

/// The thread that writes the access log, seen from the one that ends the process.
pub(crate) struct LogWriter {
    written: Receiver<()>,
}

/// A reader that takes nothing must not keep the process for ever.
const LAST_LINES: Duration = Duration::from_secs(5);

impl LogWriter {
    /// Waits until every line is written. The log itself, and all workers with it, must be gone.
    pub(crate) fn finish(&self) {
        if let Err(RecvTimeoutError::Timeout) = self.written.recv_timeout(LAST_LINES) {
            tracing::warn!("nobody takes the last lines of the access log: they are lost");
        }
    }
}

impl AccessLog {
    pub(crate) fn to_stdout() -> io::Result<(Self, LogWriter)> {
        Self::to_writer(io::stdout())
    }

    /// Appends to `path`.
    pub(crate) fn to_file(path: &Path) -> io::Result<(Self, LogWriter)> {
        Self::to_writer(OpenOptions::new().create(true).append(true).open(path)?)
    }

    fn to_writer(writer: impl Write + Send + 'static) -> io::Result<(Self, LogWriter)> {
        let (lines, receiver) = sync_channel(BACKLOG);
        let (done, written) = sync_channel(1);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            write_lines(BufWriter::new(writer), &receiver);
            // Nobody may be waiting.
            let _ = done.send(());
        })?;
        Ok((Self { lines, dropped: Arc::default() }, LogWriter { written }))
    }
}

/// Writes until every sender is gone; flushes whenever there is nothing more to write.
fn write_lines(mut writer: impl Write, lines: &Receiver<Vec<u8>>) {
    while let Ok(line) = lines.recv() {
        let mut result = writer.write_all(&line);
        while let Ok(line) = lines.try_recv() {
            result = result.and_then(|()| writer.write_all(&line));
        }
        if let Err(error) = result.and_then(|()| writer.flush()) {
            tracing::error!(%error, "cannot write the access log");
        }
    }
}

impl RecordSink for AccessLog {
    fn write(&self, record: &Record) {
        self.log(|line| access_log_line(record, line));
    }

    fn write_tunnel(&self, record: &TunnelRecord) {
        self.log(|line| tunnel_line(record, line));
    }
}

impl AccessLog {
    fn log(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut line = Vec::with_capacity(512);
        write(&mut line);
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
