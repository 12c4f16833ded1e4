//! An edge function: greets whoever asks, and sends back in capitals what is posted to `/fn/shout`, while it arrives.

use std::io::{Read, Write};

use wasip2::cli::environment::get_environment;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Greeting;

wasip2::http::proxy::export!(Greeting);

impl wasip2::exports::http::incoming_handler::Guest for Greeting {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        match (request.method(), path.split('?').next().unwrap_or_default()) {
            (Method::Get, "/fn/hello") => respond(out, 200, |body| body.write_all(greeting().as_bytes())),
            (Method::Post, "/fn/shout") => {
                let received = request.consume().expect("it is consumed once");
                let mut source = received.stream().expect("there is one stream of it");
                respond(out, 200, |body| {
                    let mut block = [0; 4096];
                    loop {
                        // By the trait: the stream's own `read` does not wait.
                        let length = Read::read(&mut source, &mut block)?;
                        if length == 0 {
                            return Ok(());
                        }
                        block[..length].make_ascii_uppercase();
                        body.write_all(&block[..length])?;
                        body.flush()?;
                    }
                });
                drop(source);
                IncomingBody::finish(received);
            }
            _ => respond(out, 404, |body| body.write_all(b"nothing is here\n")),
        }
    }
}

/// From the environment that the gateway's configuration gives it.
fn greeting() -> String {
    let named = get_environment().into_iter().find(|(name, _)| name == "GREETING");
    format!("{}\n", named.map_or_else(|| "hello".to_owned(), |(_, value)| value))
}

/// Sends the head, then what `write` writes, as it writes it.
fn respond(out: ResponseOutparam, status: u16, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) {
    let fields = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())]).expect("valid fields");
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("there is one body of it");
    ResponseOutparam::set(out, Ok(response));
    let mut sink = body.write().expect("there is one stream of it");
    // A client that is gone ends the function with it: there is nothing to do about an error.
    if write(&mut sink).is_ok() {
        drop(sink);
        let _ = OutgoingBody::finish(body, None);
    }
}
