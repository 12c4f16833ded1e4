//! HTTP/2 over TLS, by the `h2` crate.

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;

use super::Shared;
use super::http1::connect;
use crate::bench::message::{Ask, Check, FIELDS, MIB, NAME, pattern};

struct Open {
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn open(shared: &Shared) -> Result<Open, String> {
    let stream = connect(shared, b"h2").await?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(4 * MIB as u32).initial_connection_window_size(64 * MIB as u32);
    let (send, connection) = builder.handshake::<_, Bytes>(stream).await.map_err(text)?;
    let driver = tokio::task::spawn_local(async move {
        // Its end shows in the streams.
        let _ = connection.await;
    });
    Ok(Open { send, driver })
}

async fn ask(send: SendRequest<Bytes>, ask: &Ask) -> Result<(), String> {
    let mut request = Request::builder().method(ask.method()).uri(format!("https://{NAME}{}", ask.path));
    for (name, value) in FIELDS {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(text)?;
    let mut send = send.ready().await.map_err(text)?;
    let (answer, mut content) = send.send_request(request, ask.upload == 0).map_err(text)?;
    if ask.upload > 0 {
        let mut left = pattern(ask.upload);
        while !left.is_empty() {
            content.reserve_capacity(left.len());
            let room = std::future::poll_fn(|cx| content.poll_capacity(cx)).await;
            let room = room.ok_or("the stream is over")?.map_err(text)?;
            let piece = left.split_to(room.min(left.len()));
            content.send_data(piece, left.is_empty()).map_err(text)?;
        }
    }
    let answer = answer.await.map_err(text)?;
    if answer.status() != 200 {
        return Err(format!("{}", answer.status()));
    }
    let mut body = answer.into_body();
    let mut check = Check::new(ask.answer);
    while let Some(data) = body.data().await {
        let data = data.map_err(text)?;
        if !check.take(&data) {
            return Err("the content is not what the origin sent".to_owned());
        }
        body.flow_control().release_capacity(data.len()).map_err(text)?;
    }
    if check.is_complete() { Ok(()) } else { Err("the content is cut off".to_owned()) }
}

pub(super) async fn client(shared: &std::rc::Rc<Shared>) -> Result<(), String> {
    let connection = open(shared).await?;
    let streams = (0..shared.load.streams).map(|_| {
        let (shared, send) = (shared.clone(), connection.send.clone());
        tokio::task::spawn_local(async move {
            while shared.another() {
                let begun = shared.turn().await;
                ask(send.clone(), &shared.load.ask).await?;
                shared.answered(begun);
            }
            Ok::<(), String>(())
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.map_err(text)??;
    }
    Ok(())
}

pub(super) async fn once(shared: &Shared) -> Result<impl Sized + use<>, String> {
    let connection = open(shared).await?;
    ask(connection.send.clone(), &shared.load.ask).await?;
    Ok(connection)
}
