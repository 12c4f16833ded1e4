//! A guest's standard output and error, line by line in the log.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_wasm::one_line;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::component::Shared;

/// Bytes of a line; what is longer goes on in the next.
const MAX_LINE: usize = 1024;
/// Bytes of one write.
const MAX_WRITE: usize = 64 * 1024;

#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) component: Arc<Shared>,
    /// `stdout` or `stderr`.
    pub(crate) stream: &'static str,
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Lines { output: self.clone(), line: Vec::new() })
    }

    /// Of WASI 0.3, which is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::empty())
    }
}

/// One handle of a guest on it.
struct Lines {
    output: Output,
    line: Vec<u8>,
}

impl Lines {
    fn end_line(&mut self) {
        let Output { component, stream } = &self.output;
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() && component.may_log() {
            let text = String::from_utf8_lossy(&line);
            tracing::info!(cluster = &*component.name, stream, "{}", one_line(&text));
        }
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        for byte in bytes {
            if byte == b'\n' {
                self.end_line();
                continue;
            }
            self.line.push(byte);
            if self.line.len() >= MAX_LINE {
                self.end_line();
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end_line();
    }
}
