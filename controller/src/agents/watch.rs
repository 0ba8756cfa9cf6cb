//! What an agent tells of itself for as long as somebody listens, read without a buffer that is kept. tonic's has room for the largest message that
//! ever came: a stream tells much at its beginning, and then nothing for hours.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{
    Request, StatusCode,
    header::{CONTENT_TYPE, TE},
};
use http_body_util::{BodyExt, Full};
use prost::Message;
use pvelet_proto::v1;
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    client::MAX_MESSAGE,
    guard::{Guarded, STREAMING},
};

/// Before each message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;

/// A request that is answered by a stream.
pub trait Watched: Message {
    /// The path of the method, one of those that stream.
    const METHOD: &'static str;
    /// What is told.
    type Event: Message + Default;
}

impl Watched for v1::WatchHostRequest {
    const METHOD: &'static str = STREAMING[0];
    type Event = v1::WatchHostResponse;
}

impl Watched for v1::WatchOperationsRequest {
    const METHOD: &'static str = STREAMING[1];
    type Event = v1::WatchOperationsResponse;
}

impl Watched for v1::WatchHealthRequest {
    const METHOD: &'static str = STREAMING[2];
    type Event = v1::WatchHealthResponse;
}

/// A stream of messages.
#[derive(Debug)]
pub struct Watch<T> {
    body: Body,
    /// What came of messages that are not whole yet.
    begun: BytesMut,
    of: PhantomData<fn() -> T>,
}

/// Opens a stream.
pub(super) async fn open<W: Watched>(mut to: Guarded, request: &W) -> Result<Watch<W::Event>, Status> {
    let answer = to.call(self::request(request)?).await?;
    let (head, body) = answer.into_parts();
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        None if head.status != StatusCode::OK => Err(Status::unknown(format!("the agent answered with HTTP status {}", head.status))),
        _ => Ok(Watch { body, begun: BytesMut::new(), of: PhantomData }),
    }
}

fn request<W: Watched>(message: &W) -> Result<Request<Body>, Status> {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX + length);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).map_err(|_| Status::internal("the request is too large"))?);
    message.encode(&mut body).map_err(|e| Status::internal(e.to_string()))?;
    let request = Request::post(W::METHOD).header(TE, "trailers").header(CONTENT_TYPE, "application/grpc");
    request.body(Body::new(Full::new(body.freeze()))).map_err(|e| Status::internal(e.to_string()))
}

impl<T: Message + Default> Watch<T> {
    /// The next message; nothing once the agent has ended the stream in order. May be given up at any time, and asked for again.
    ///
    /// # Errors
    /// The agent's, or the connection's.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await.transpose()? else { return Err(cut_short()) };
            match frame.into_data() {
                Ok(data) => self.begun.extend_from_slice(&data),
                Err(frame) => {
                    let status = frame.into_trailers().ok().as_ref().and_then(Status::from_header_map);
                    return match status {
                        Some(status) if status.code() == Code::Ok => Ok(None),
                        Some(status) => Err(status),
                        None => Err(cut_short()),
                    };
                }
            }
        }
    }

    /// The first message of those that came, if it is whole.
    fn take(&mut self) -> Result<Option<T>, Status> {
        let Some(mut prefix) = self.begun.get(..PREFIX) else { return Ok(None) };
        if prefix.get_u8() != 0 {
            return Err(Status::internal("the agent sends compressed messages, which nobody asked for"));
        }
        let length = usize::try_from(prefix.get_u32()).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(Status::out_of_range(format!("a message of {length} bytes; at most {MAX_MESSAGE} are taken")));
        }
        if self.begun.len() < PREFIX + length {
            return Ok(None);
        }
        self.begun.advance(PREFIX);
        let message: Bytes = self.begun.split_to(length).freeze();
        if self.begun.is_empty() {
            self.begun = BytesMut::new();
        }
        T::decode(message).map(Some).map_err(|e| Status::internal(format!("the agent sent what is no message of this kind: {e}")))
    }
}

fn cut_short() -> Status {
    Status::unavailable("the agent ended the stream without saying why")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use futures_util::stream;
    use http::HeaderMap;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    fn told(name: &str) -> v1::Operation {
        v1::Operation { name: name.repeat(40), ..v1::Operation::default() }
    }

    fn wire(messages: &[v1::Operation]) -> Vec<u8> {
        let mut wire = Vec::new();
        for message in messages {
            wire.put_u8(0);
            wire.put_u32(u32::try_from(message.encoded_len()).unwrap());
            message.encode(&mut wire).unwrap();
        }
        wire
    }

    fn watch(wire: &[u8], piece: usize, status: Option<&str>) -> Watch<v1::Operation> {
        let mut frames: Vec<Frame<Bytes>> = wire.chunks(piece).map(|piece| Frame::data(Bytes::copy_from_slice(piece))).collect();
        frames.extend(status.map(|code| Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]))));
        let body = Body::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, Infallible>))));
        Watch { body, begun: BytesMut::new(), of: PhantomData }
    }

    #[tokio::test]
    async fn messages_come_whole_in_whatever_pieces_they_are_sent() {
        let all = [told("a"), told(""), told("c")];
        let wire = wire(&all);
        for piece in [1, 3, PREFIX, 50, wire.len()] {
            let mut watch = watch(&wire, piece, Some("0"));
            for message in &all {
                assert_eq!(watch.message().await.unwrap().as_ref(), Some(message), "pieces of {piece}");
            }
            assert_eq!(watch.begun.capacity(), 0, "nothing is kept of what was read");
            assert_eq!(watch.message().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn the_end_of_a_stream_says_why() {
        let code = |status: Option<&'static str>| async move { watch(&[], 1, status).message().await.unwrap_err().code() };
        assert_eq!((code(Some("8")).await, code(None).await), (Code::ResourceExhausted, Code::Unavailable));
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        for (wire, says) in
            [([1, 0, 0, 0, 0, 0], "compressed"), ([0, 255, 0, 0, 0, 0], "bytes; at most"), ([0, 0, 0, 0, 1, 255], "no message")]
        {
            let error = watch(&wire, 6, None).message().await.unwrap_err();
            assert!(error.message().contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn a_message_that_breaks_off_is_not_told() {
        let wire = wire(&[told("a")]);
        let mut watch = watch(&wire[..wire.len() - 1], 7, None);
        assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
    }
}
