//! The peer's unidirectional streams (RFC 9114, section 6.2; RFC 9204, section 4.2): the control stream with its SETTINGS
//! and GOAWAY, the two of QPACK that have next to nothing to say, and those to be ignored.

use std::cell::Cell;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use h3::error::Code;
use quinn::ReadError;

use super::frame::{self, Kind, Settings, Violation};
use super::link::{Link, Role, varint};
use super::qpack::integer::{self, Unread};
use super::varint as number;

/// Far more than all settings that are known; what is longer is an attack on memory.
const MAX_SETTINGS: usize = 4096;

const CONTROL: u64 = 0x0;
const PUSH: u64 = 0x1;
const QPACK_ENCODER: u64 = 0x2;
const QPACK_DECODER: u64 = 0x3;

/// Streams that there may be one of.
#[derive(Default)]
struct Critical {
    control: Cell<bool>,
    encoder: Cell<bool>,
    decoder: Cell<bool>,
}

/// Accepts the peer's streams, a task each, until the connection ends.
pub(super) async fn accept(link: Rc<Link>) {
    let critical = Rc::new(Critical::default());
    while let Ok(recv) = link.connection.accept_uni().await {
        if let Err(violation) = link.idle_frame() {
            return link.fail(violation);
        }
        let (link, critical) = (link.clone(), critical.clone());
        tokio::task::spawn_local(async move {
            if let Err(violation) = serve(&link, &critical, recv).await {
                link.fail(violation);
            }
        });
    }
    link.settle();
}

async fn serve(link: &Link, critical: &Critical, recv: quinn::RecvStream) -> Result<(), Violation> {
    let mut input = Input { recv, ahead: Bytes::new() };
    // Section 6.2: a stream that ends before its type is told is no error.
    let Ok(kind) = input.number().await else { return Ok(()) };
    let only = |seen: &Cell<bool>| match seen.replace(true) {
        false => Ok(()),
        true => Err(Violation::new(Code::H3_STREAM_CREATION_ERROR, "a second stream of a kind there is one of")),
    };
    let ended = match kind {
        CONTROL => {
            only(&critical.control)?;
            control(link, &mut input).await
        }
        QPACK_ENCODER => {
            only(&critical.encoder)?;
            encoder(link, &mut input).await
        }
        QPACK_DECODER => {
            only(&critical.decoder)?;
            decoder(link, &mut input).await
        }
        PUSH if link.role == Role::Server => {
            return Err(Violation::new(Code::H3_STREAM_CREATION_ERROR, "a push by a client"));
        }
        // Section 4.6: we never allowed a push.
        PUSH => return Err(Violation::new(Code::H3_ID_ERROR, "a push that was not allowed")),
        _ => {
            // Section 6.2.3 and section 9: to be ignored, by not reading it.
            let _ = input.recv.stop(varint(Code::H3_STREAM_CREATION_ERROR));
            return Ok(());
        }
    };
    match ended {
        Err(Ended::Stream) => Err(Violation::new(Code::H3_CLOSED_CRITICAL_STREAM, "a critical stream was closed")),
        Err(Ended::Connection) | Ok(()) => Ok(()),
        Err(Ended::Violation(violation)) => Err(violation),
    }
}

/// Why reading a stream ended.
enum Ended {
    /// Closed or reset by the peer.
    Stream,
    Connection,
    Violation(Violation),
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// The bytes of a stream, a piece at a time.
struct Input {
    recv: quinn::RecvStream,
    ahead: Bytes,
}

impl Input {
    /// What is at hand; waits until there is something.
    async fn some(&mut self) -> Result<&mut Bytes, Ended> {
        while self.ahead.is_empty() {
            self.ahead = match self.recv.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => chunk.bytes,
                Ok(None) | Err(ReadError::Reset(_)) => return Err(Ended::Stream),
                Err(_) => return Err(Ended::Connection),
            };
        }
        Ok(&mut self.ahead)
    }

    async fn byte(&mut self) -> Result<u8, Ended> {
        Ok(self.some().await?.get_u8())
    }

    async fn number(&mut self) -> Result<u64, Ended> {
        let first = self.byte().await?;
        let mut bytes = [first, 0, 0, 0, 0, 0, 0, 0];
        let length = 1 << (first >> 6);
        for byte in &mut bytes[1..length] {
            *byte = self.byte().await?;
        }
        // All of its bytes are there.
        Ok(number::read(&bytes[..length]).map_or(0, |(value, _)| value))
    }

    async fn exactly(&mut self, length: usize) -> Result<BytesMut, Ended> {
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            let missing = length - bytes.len();
            let some = self.some().await?;
            bytes.extend_from_slice(&some.split_to(missing.min(some.len())));
        }
        Ok(bytes)
    }

    async fn skip(&mut self, mut length: u64) -> Result<(), Ended> {
        while length > 0 {
            let some = self.some().await?;
            let take = usize::try_from(length).unwrap_or(usize::MAX).min(some.len());
            some.advance(take);
            length -= take as u64;
        }
        Ok(())
    }

    async fn header(&mut self) -> Result<(Kind, u64), Ended> {
        let mut header = BytesMut::with_capacity(frame::LONGEST_HEADER);
        loop {
            // At most as many as the longest header has.
            let byte = self.byte().await?;
            header.extend_from_slice(&[byte]);
            if let Some((kind, length, _)) = frame::header(&header) {
                return Ok((kind, length));
            }
        }
    }
}

/// Sections 6.2.1 and 7.2.
async fn control(link: &Link, input: &mut Input) -> Result<(), Ended> {
    let violation = |code, reason| Ended::Violation(Violation::new(code, reason));
    let (kind, length) = input.header().await?;
    if kind != Kind::Settings {
        return Err(violation(Code::H3_MISSING_SETTINGS, "the control stream does not begin with SETTINGS"));
    }
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_SETTINGS);
    let length = length.ok_or(violation(Code::H3_EXCESSIVE_LOAD, "SETTINGS is too large"))?;
    link.set_peer(Settings::read(&input.exactly(length).await?)?);
    let mut max_push_id = None;
    loop {
        let (kind, length) = input.header().await?;
        link.idle_frame()?;
        let id = match kind {
            Kind::GoAway | Kind::MaxPushId | Kind::CancelPush if length > 8 => {
                return Err(violation(Code::H3_FRAME_ERROR, "a frame that is not one number"));
            }
            Kind::GoAway | Kind::MaxPushId | Kind::CancelPush => {
                frame::number(&input.exactly(usize::try_from(length).unwrap_or(0)).await?)?
            }
            _ => 0,
        };
        match kind {
            Kind::GoAway => link.set_goaway(id)?,
            // Section 7.2.7: a client's only, and it never shrinks.
            Kind::MaxPushId if link.role == Role::Server => {
                if max_push_id.replace(id).is_some_and(|last| id < last) {
                    return Err(violation(Code::H3_ID_ERROR, "MAX_PUSH_ID shrinks"));
                }
            }
            // Section 7.2.3: there is no push that could be meant.
            Kind::CancelPush => return Err(violation(Code::H3_ID_ERROR, "CANCEL_PUSH of a push that is not")),
            Kind::Unknown => input.skip(length).await?,
            Kind::Settings => return Err(violation(Code::H3_FRAME_UNEXPECTED, "a second SETTINGS")),
            Kind::Data | Kind::Headers | Kind::PushPromise | Kind::MaxPushId | Kind::Http2 => {
                return Err(violation(Code::H3_FRAME_UNEXPECTED, "a frame that no control stream has"));
            }
        }
    }
}

/// RFC 9204, section 3.2.3: a table without capacity allows no instruction. That it has none may be repeated: it changes
/// nothing, and is bounded like all that carries nothing.
async fn encoder(link: &Link, input: &mut Input) -> Result<(), Ended> {
    const SET_CAPACITY_ZERO: u8 = 0x20;
    loop {
        if input.byte().await? != SET_CAPACITY_ZERO {
            let reason = "an instruction for a dynamic table of no capacity";
            return Err(Violation::new(Code::QPACK_ENCODER_STREAM_ERROR, reason).into());
        }
        link.idle_frame()?;
    }
}

/// RFC 9204, section 4.4: we use no dynamic table, so there is nothing to acknowledge. A stream that is given up may be
/// told of.
async fn decoder(link: &Link, input: &mut Input) -> Result<(), Ended> {
    let wrong = || Ended::Violation(Violation::new(Code::QPACK_DECODER_STREAM_ERROR, "nothing to acknowledge"));
    let mut instruction = BytesMut::new();
    loop {
        let byte = input.byte().await?;
        instruction.extend_from_slice(&[byte]);
        if instruction[0] & 0xc0 != 0x40 {
            return Err(wrong());
        }
        match integer::read(&instruction, 6) {
            Ok(_) => {
                instruction.clear();
                link.idle_frame()?;
            }
            Err(Unread::Short) => {}
            Err(Unread::TooLarge) => return Err(wrong()),
        }
    }
}
