//! WASI 0.2 for plugins that were granted it: clocks, chance, an empty environment, standard streams that swallow, a
//! file system without a file. No network.
//!
//! The interfaces are `wasmtime-wasi`'s wherever they cannot wait. Its `wasi:io` can: the synchronous kind enters a
//! runtime to wait in, which panics on a worker, which is in one, and anywhere else sleeps for as long as the guest
//! likes, past every limit. A decision is made now: what would have to wait here is a fault of the guest.

use std::time::{Duration, Instant};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceType};
use wasmtime::{Error, Result, StoreContextMut};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksCtxView, WasiClocksView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};
use wasmtime_wasi::p2::bindings::sync::filesystem::types as filesystem_types;
use wasmtime_wasi::p2::bindings::sync::io::{poll, streams};
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, IoError, StreamError, StreamResult, pipe};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::{WasiCtx, WasiView};

use crate::state::State;

/// Most resources a guest may hold, and most random bytes of one call: bounds on what it can make the host hold.
const MAX_RESOURCES: usize = 1024;
const MAX_RANDOM: u64 = 64 * 1024;

/// What a store with WASI keeps.
pub(crate) fn context() -> (WasiCtx, ResourceTable) {
    let mut builder = WasiCtx::builder();
    builder.stdin(pipe::ClosedInputStream).stdout(pipe::SinkOutputStream).stderr(pipe::SinkOutputStream);
    builder.max_random_size(MAX_RANDOM).allow_tcp(false).allow_udp(false);
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_RESOURCES);
    (builder.build(), table)
}

/// Whether an import is of an interface that `link` knows, in some version 0.2.
pub(crate) fn known(import: &str) -> bool {
    let packages = ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/"];
    packages.iter().any(|package| import.starts_with(package))
        && import.split_once('@').is_some_and(|(_, version)| version.starts_with("0.2."))
}

pub(crate) fn link(l: &mut Linker<State>) -> Result<()> {
    wall_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    monotonic_clock::add_to_linker::<State, Clock<'static>>(l, |state| Clock(state.clocks()))?;
    random::random::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    random::insecure::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    cli::environment::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::exit::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    // All that could wait in it needs a descriptor, and nobody has one.
    filesystem::preopens::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    filesystem_types::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    let mut error = l.instance("wasi:io/error@0.2.12")?;
    error.resource("error", ResourceType::host::<IoError>(), |mut store, rep| {
        store.data_mut().ctx().table.delete(Resource::<IoError>::new_own(rep))?;
        Ok(())
    })?;
    error.func_wrap(
        "[method]error.to-debug-string",
        |mut store: StoreContextMut<'_, State>, (error,): (Resource<IoError>,)| {
            Ok((format!("{:?}", store.data_mut().ctx().table.get(&error)?),))
        },
    )?;
    poll::add_to_linker::<State, Io<'static>>(l, io)?;
    streams::add_to_linker::<State, Io<'static>>(l, io)
}

fn io(state: &mut State) -> Io<'_> {
    Io(state.ctx().table)
}

/// `wasi:io` over the resources of a store.
struct Io<'a>(&'a mut ResourceTable);

impl HasData for Io<'static> {
    type Data<'a> = Io<'a>;
}

/// What stands in the table for a pollable: when it is ready.
enum Ready {
    Always,
    At(Instant),
    Never,
}

impl Ready {
    fn subscribe(self, table: &mut ResourceTable) -> Result<Resource<DynPollable>> {
        // Guests see a number; that it stands for another type in the table is between `subscribe` and `Io`, which are
        // the only ones that make pollables here and look at them.
        Ok(Resource::new_own(table.push(self)?.rep()))
    }

    fn now(&self) -> bool {
        match self {
            Self::Always => true,
            Self::At(then) => *then <= Instant::now(),
            Self::Never => false,
        }
    }
}

fn would_wait() -> Error {
    Error::msg("it waits, and a decision is made at once: poll only what is ready")
}

impl Io<'_> {
    fn is_ready(&self, pollable: &Resource<DynPollable>) -> Result<bool> {
        Ok(self.0.get(&Resource::<Ready>::new_borrow(pollable.rep()))?.now())
    }
}

impl poll::Host for Io<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        let mut ready = Vec::new();
        for (index, pollable) in (0..).zip(&pollables) {
            if self.is_ready(pollable)? {
                ready.push(index);
            }
        }
        if ready.is_empty() { Err(would_wait()) } else { Ok(ready) }
    }
}

impl poll::HostPollable for Io<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> Result<bool> {
        self.is_ready(&pollable)
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        if self.is_ready(&pollable)? { Ok(()) } else { Err(would_wait()) }
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        self.0.delete(Resource::<Ready>::new_own(pollable.rep()))?;
        Ok(())
    }
}

impl streams::Host for Io<'_> {
    fn convert_stream_error(&mut self, error: StreamError) -> Result<streams::StreamError> {
        Ok(match error {
            StreamError::Closed => streams::StreamError::Closed,
            StreamError::LastOperationFailed(error) => streams::StreamError::LastOperationFailed(self.0.push(error)?),
            StreamError::Trap(error) => return Err(error),
        })
    }
}

impl Io<'_> {
    /// Writes and flushes what the stream takes at once, which is all for one that swallows.
    fn write_now(&mut self, stream: &Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        let stream = self.0.get_mut(stream)?;
        if stream.check_write()? < bytes.len() {
            return Err(StreamError::Trap(would_wait()));
        }
        stream.write(bytes.into())?;
        stream.flush()
    }
}

/// Most bytes of a blocking write, by the contract of `wasi:io`.
const MAX_WRITE: u64 = 4096;

impl streams::HostOutputStream for Io<'_> {
    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<u64> {
        Ok(self.0.get_mut(&stream)?.check_write()? as u64)
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        self.0.get_mut(&stream)?.write(bytes.into())
    }

    fn blocking_write_and_flush(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        if bytes.len() as u64 > MAX_WRITE {
            return Err(StreamError::Trap(Error::msg("more than 4096 bytes in a blocking write")));
        }
        self.write_now(&stream, bytes)
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        self.0.get_mut(&stream)?.flush()
    }

    fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        self.write_now(&stream, Vec::new())
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> Result<Resource<DynPollable>> {
        self.0.get(&stream)?;
        Ready::Always.subscribe(self.0)
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, length: u64) -> StreamResult<()> {
        if length > MAX_WRITE {
            return Err(StreamError::Trap(Error::msg("more than 4096 zeroes in a write")));
        }
        self.0.get_mut(&stream)?.write(vec![0; length as usize].into())
    }

    fn blocking_write_zeroes_and_flush(&mut self, stream: Resource<DynOutputStream>, length: u64) -> StreamResult<()> {
        if length > MAX_WRITE {
            return Err(StreamError::Trap(Error::msg("more than 4096 zeroes in a blocking write")));
        }
        self.write_now(&stream, vec![0; length as usize])
    }

    fn splice(
        &mut self,
        into: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        let bytes = self.0.get_mut(&from)?.read(length.min(MAX_WRITE) as usize)?;
        let count = bytes.len() as u64;
        self.0.get_mut(&into)?.write(bytes)?;
        Ok(count)
    }

    fn blocking_splice(
        &mut self,
        into: Resource<DynOutputStream>,
        from: Resource<DynInputStream>,
        length: u64,
    ) -> StreamResult<u64> {
        match self.splice(into, from, length)? {
            0 if length > 0 => Err(StreamError::Trap(would_wait())),
            count => Ok(count),
        }
    }

    fn drop(&mut self, stream: Resource<DynOutputStream>) -> Result<()> {
        self.0.delete(stream)?;
        Ok(())
    }
}

impl streams::HostInputStream for Io<'_> {
    fn read(&mut self, stream: Resource<DynInputStream>, length: u64) -> StreamResult<Vec<u8>> {
        Ok(self.0.get_mut(&stream)?.read(length.min(MAX_WRITE) as usize)?.into())
    }

    fn blocking_read(&mut self, stream: Resource<DynInputStream>, length: u64) -> StreamResult<Vec<u8>> {
        match self.read(stream, length)? {
            bytes if bytes.is_empty() && length > 0 => Err(StreamError::Trap(would_wait())),
            bytes => Ok(bytes),
        }
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, length: u64) -> StreamResult<u64> {
        Ok(self.0.get_mut(&stream)?.skip(length.min(MAX_WRITE) as usize)? as u64)
    }

    fn blocking_skip(&mut self, stream: Resource<DynInputStream>, length: u64) -> StreamResult<u64> {
        match self.skip(stream, length)? {
            0 if length > 0 => Err(StreamError::Trap(would_wait())),
            count => Ok(count),
        }
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> Result<Resource<DynPollable>> {
        self.0.get(&stream)?;
        Ready::Always.subscribe(self.0)
    }

    fn drop(&mut self, stream: Resource<DynInputStream>) -> Result<()> {
        self.0.delete(stream)?;
        Ok(())
    }
}

/// `wasi:clocks/monotonic-clock`, whose pollables are ours.
struct Clock<'a>(WasiClocksCtxView<'a>);

impl HasData for Clock<'static> {
    type Data<'a> = Clock<'a>;
}

impl monotonic_clock::Host for Clock<'_> {
    fn now(&mut self) -> Result<u64> {
        monotonic_clock::Host::now(&mut self.0)
    }

    fn resolution(&mut self) -> Result<u64> {
        monotonic_clock::Host::resolution(&mut self.0)
    }

    fn subscribe_instant(&mut self, when: u64) -> Result<Resource<DynPollable>> {
        let now = self.now()?;
        self.subscribe_duration(when.saturating_sub(now))
    }

    fn subscribe_duration(&mut self, wait: u64) -> Result<Resource<DynPollable>> {
        let then = Instant::now().checked_add(Duration::from_nanos(wait));
        then.map_or(Ready::Never, Ready::At).subscribe(self.0.table)
    }
}
