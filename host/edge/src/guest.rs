//! One request's instance: its store, its limits, and how it comes to an end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use thiserror::Error;
use tidegate_wasm::{Held, Place};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime::component::ResourceTable;
use wasmtime::{PoolConcurrencyLimitError, ResourceLimiter, Store};
use wasmtime_wasi::p2::pipe::ClosedInputStream;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, HyperOutgoingBody, StreamContext};
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, Result as HttpResult, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks,
    WasiHttpView,
};

use crate::component::Shared;
use crate::meter::{Meter, Metered, Spent};
use crate::output::Output;
use crate::stats::FaultKind;

/// As a guest gives it.
pub(crate) type Answer = hyper::Response<HyperOutgoingBody>;
pub(crate) type Response = hyper::Response<Whole>;

/// Most resources a guest may hold, and most random bytes of one call: bounds on what it can make the host hold.
const MAX_RESOURCES: usize = 1024;
const MAX_RANDOM: u64 = 64 * 1024;
/// Bytes that one call may carry between host and guest.
const HOSTCALL_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of a body that one write takes, which wait here until the client takes them.
const BODY_CHUNK: usize = 64 * 1024;

/// Data of a store.
pub(crate) struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoRequests,
    memory: Memory,
    meter: Arc<Meter>,
    _live: Live,
}

/// What one guest has of linear memory, over all of its memories.
struct Memory {
    limit: usize,
    used: usize,
    /// The same, as its tenant's.
    held: Held,
    refused: bool,
    refused_tenant: bool,
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        if used > self.limit {
            self.refused = true;
        } else if !self.held.grow(used) {
            self.refused_tenant = true;
        } else {
            self.used = used;
            return Ok(true);
        }
        Ok(false)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= 20_000)
    }
}

/// Outgoing requests are denied.
struct NoRequests;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<
        dyn Future<
                Output = HttpResult<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), HttpError>> + Send>)>,
            > + Send,
    > {
        Box::new(async { Err(HttpError::HttpRequestDenied) })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }
}

/// Counts an instance while it lives, and its CPU time when it is gone.
struct Live {
    component: Arc<Shared>,
    meter: Arc<Meter>,
    _place: Place,
}

impl Live {
    fn begin(component: &Arc<Shared>, meter: &Arc<Meter>, place: Place) -> Self {
        component.stats.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self { component: component.clone(), meter: meter.clone(), _place: place }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let used = u64::try_from(self.meter.used().as_nanos()).unwrap_or(u64::MAX);
        self.component.stats.cpu.fetch_add(used, std::sync::atomic::Ordering::Relaxed);
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

impl Guest {
    fn new(component: &Arc<Shared>, meter: Arc<Meter>, place: Place) -> Self {
        let output = |stream| Output { component: component.clone(), stream };
        let mut builder = WasiCtx::builder();
        builder.stdin(ClosedInputStream).stdout(output("stdout")).stderr(output("stderr"));
        builder.envs(&component.environment).max_random_size(MAX_RANDOM).allow_tcp(false).allow_udp(false);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        let (limit, held) = (component.limits.memory, component.account.held());
        let memory = Memory { limit, used: 0, held, refused: false, refused_tenant: false };
        let live = Live::begin(component, &meter, place);
        let http = WasiHttpCtx::new();
        Self { table, wasi: builder.build(), http, hooks: NoRequests, memory, meter, _live: live }
    }

    /// Breaks off the bodies that the guest has not finished and still holds as it ends. `wasi:http` 0.2 on `outgoing-body`: where
    /// it is dropped without `finish`, it is to be taken for corrupted. What the guest drops itself the host breaks off itself; dropped
    /// with the table, a body would seem to end well.
    fn break_off(&mut self) {
        for left in self.table.iter_mut().filter_map(|entry| entry.downcast_mut::<HostOutgoingBody>()) {
            let (none, _) = HostOutgoingBody::new(StreamContext::Response, None, 1, BODY_CHUNK);
            std::mem::replace(left, none).abort();
        }
    }
}

/// What becomes of a request: the guest's answer, and its end, with a fault or without. Both senders are dropped where a
/// host function panics.
pub(crate) struct Outcome {
    pub(crate) answer: oneshot::Sender<Result<Answer, FaultKind>>,
    pub(crate) end: oneshot::Sender<Option<FaultKind>>,
}

/// Lets an instance of its own answer `request`; returns when it is done, which may be after its answer.
pub(crate) async fn run(
    component: Arc<Shared>,
    request: hyper::Request<Incoming>,
    outcome: Outcome,
    (_permit, place): (OwnedSemaphorePermit, Place),
) {
    let meter = Arc::new(Meter::new(component.limits.cpu_time, component.account.clone()));
    let mut store = Store::new(&component.edge.engine, Guest::new(&component, meter.clone(), place));
    store.limiter(|guest| &mut guest.memory);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    store.epoch_deadline_callback(|context| context.data().meter.look());
    store.set_epoch_deadline(1);
    let work = call(&component, &mut store, request, outcome.answer);
    let work = Metered::new(work, meter, component.edge.ticker.clone());
    let done = match component.limits.timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(TooLong(limit).into())),
    };
    let fault = done.err().and_then(|error| fault(&error, &store.data().memory));
    if let Some((kind, detail)) = &fault {
        component.fault(*kind, detail);
    }
    store.data_mut().break_off();
    // Before the store is dropped, which ends its body. Nobody may wait any more.
    let _ = outcome.end.send(fault.map(|(kind, _)| kind));
}

/// It was not done in time.
#[derive(Debug, Error)]
#[error("it was not done within {0:?}")]
struct TooLong(Duration);

async fn call(
    component: &Arc<Shared>,
    store: &mut Store<Guest>,
    request: hyper::Request<Incoming>,
    answer: oneshot::Sender<Result<Answer, FaultKind>>,
) -> wasmtime::Result<()> {
    let scheme = scheme(request.headers());
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(scheme, request)?;
    let of = component.clone();
    let out = view.new_response_outparam_from_callback(move |response: Result<Answer, ErrorCode>| {
        let response = response.map_err(|code| {
            of.fault(FaultKind::Error, &format!("it answered with the error {code:?}"));
            FaultKind::Error
        });
        // Nobody may wait any more.
        let _ = answer.send(response);
    })?;
    let proxy = component.pre.instantiate_async(&mut *store).await?;
    proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
}

/// As the client spoke, where the gateway tells of it.
fn scheme(headers: &HeaderMap) -> Scheme {
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    if headers.get(PROTO).is_some_and(|proto| proto == "https") { Scheme::Https } else { Scheme::Http }
}

/// Why a guest ended; `None` where it said that all is well.
fn fault(error: &wasmtime::Error, memory: &Memory) -> Option<(FaultKind, String)> {
    if let Some(I32Exit(0)) = error.downcast_ref::<I32Exit>() {
        return None;
    }
    let kind = if error.is::<PoolConcurrencyLimitError>() {
        FaultKind::Full
    } else if error.is::<Spent>() {
        FaultKind::CpuTime
    } else if error.is::<TooLong>() {
        FaultKind::Timeout
    } else if memory.refused_tenant {
        FaultKind::Budget
    } else if memory.refused {
        FaultKind::Memory
    } else {
        FaultKind::Trap
    };
    // Without the backtrace around it, whose addresses say nothing to a user.
    let mut detail = error.root_cause().to_string();
    detail.truncate(detail.floor_char_boundary(400));
    Some((kind, detail))
}

impl Shared {
    /// Counts and logs what befell a request.
    pub(crate) fn fault(&self, kind: FaultKind, detail: &str) {
        self.stats.fault(kind);
        if self.may_log() {
            let detail = tidegate_wasm::one_line(detail);
            tracing::warn!(cluster = &*self.name, cause = kind.name(), "a component failed a request: {detail}");
        }
    }
}

impl Shared {
    /// Whether it may write another line; takes it.
    pub(crate) fn may_log(&self) -> bool {
        self.stats.may_log(self.limits.log_lines, || self.account.may_log(Instant::now()))
    }
}

/// A guest's body that ends well only if the guest has: what is left of one whose guest failed looks like a whole one.
pub(crate) struct Whole {
    body: HyperOutgoingBody,
    /// `None` for a body of the host's own, and after the end.
    guest: Option<(Arc<Shared>, oneshot::Receiver<Option<FaultKind>>)>,
}

impl Whole {
    pub(crate) fn of(answer: Answer, component: &Arc<Shared>, end: oneshot::Receiver<Option<FaultKind>>) -> Response {
        answer.map(|body| Self { body, guest: Some((component.clone(), end)) })
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if matches!(frame, Some(Ok(_))) {
            return Poll::Ready(frame);
        }
        let Some((component, mut end)) = self.guest.take() else { return Poll::Ready(frame) };
        // Empty: the guest goes on, and has done with its body.
        let failed = matches!(end.try_recv(), Ok(Some(_)) | Err(TryRecvError::Closed));
        if frame.is_some() && !failed {
            let detail = "it did not finish its body, or said that it is longer (wasi:http, outgoing-body.finish)";
            component.fault(FaultKind::Unfinished, detail);
        }
        if frame.is_some() || failed {
            Poll::Ready(Some(Err(HttpError::HttpResponseIncomplete)))
        } else {
            Poll::Ready(None)
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer of the host's own.
pub(crate) fn plain(status: http::StatusCode, text: &'static str) -> Response {
    use http_body_util::{BodyExt, Full};
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = hyper::Response::new(Whole { body, guest: None });
    *response.status_mut() = status;
    response
}
