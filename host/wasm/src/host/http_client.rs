//! `http-client`: calls to clusters that were granted. What comes back is nobody's to remember.

use std::time::Duration;

use http::HeaderName;
use tidegate_policy::{CalloutError, CalloutResponse};
use wasmtime::StoreContextMut;

use super::Instance;
use crate::callout::{Counted, Out, Wanted};
use crate::state::State;
use crate::types::{Field, HttpError, Response};

type Store<'a> = StoreContextMut<'a, State>;
type Params = (String, String, String, Vec<Field>, Vec<u8>, u64);
type Answer = (Result<Response, HttpError>,);

/// For guests that run on a fiber: the call waits, and the worker does not.
pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap_async("send", |store: Store<'_>, params: Params| Box::new(send(store, wanted(params))))
}

/// For guests that cannot wait: what a simulation has for them, and else nothing.
pub(super) fn link_without_waits(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("send", |mut store: Store<'_>, params: Params| -> wasmtime::Result<Answer> {
        let state = store.data_mut();
        state.trace.taint();
        let wanted = wanted(params);
        let mut counted = Counted::begin(&state.core.stats);
        let answered = match &state.core.runtime.simulation {
            Some(simulation) => simulation.script.answer(&wanted),
            None => Err(CalloutError::NotGranted),
        };
        counted.ended(&answered);
        Ok((answered.map(response).map_err(HttpError::from),))
    })
}

async fn send(mut store: Store<'_>, wanted: Wanted) -> wasmtime::Result<Answer> {
    let state = store.data_mut();
    state.trace.taint();
    let mut counted = Counted::begin(&state.core.stats);
    let cluster = wanted.cluster.clone();
    let answered = match Out::begin(state, wanted) {
        Ok(out) => {
            state.pause();
            let answered = out.await;
            let state = store.data_mut();
            state.resume();
            if let Err(error) = &answered {
                let (plugin, took) = (&*state.core.name, counted.took());
                tracing::debug!(plugin, cluster, %error, ?took, "callout without a response");
            }
            answered
        }
        Err(error) => Err(error),
    };
    counted.ended(&answered);
    if store.data().core.quarantine.withdrawn() {
        // It must not run a moment longer.
        return Err(wasmtime::Error::msg("it was withdrawn while it waited"));
    }
    Ok((answered.map(response).map_err(HttpError::from),))
}

fn wanted((cluster, method, target, fields, body, timeout): Params) -> Wanted {
    let fields = fields.into_iter().map(|field| (field.name, field.value)).collect();
    Wanted { cluster, method, target, fields, body, timeout: Duration::from_nanos(timeout) }
}

fn response(response: CalloutResponse) -> Response {
    let field = |(name, value): (&HeaderName, &http::HeaderValue)| Field {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_owned(),
    };
    Response {
        status: response.status.as_u16(),
        headers: response.headers.iter().map(field).collect(),
        body: response.body.into(),
    }
}

impl From<CalloutError> for HttpError {
    fn from(error: CalloutError) -> Self {
        match error {
            CalloutError::NotGranted => Self::NotGranted,
            CalloutError::TimedOut => Self::TimedOut,
            CalloutError::TooLarge => Self::TooLarge,
            CalloutError::Failed(why) => Self::Failed(Some(why)),
            CalloutError::Refused(why) => Self::Other(Some(why)),
        }
    }
}
